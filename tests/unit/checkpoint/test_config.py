"""A rewritten config differs in one value, and in no other character."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptertool.checkpoint.config import AdapterConfig, read_config
from adaptertool.checkpoint.folder import LocalFolder
from adaptertool.errors import CorruptError
from tests.checkpoints import CONFIG

KEY = "save_projection"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just(KEY), inner),
    max_leaves=8,
)


def config(text: str) -> AdapterConfig:
    return AdapterConfig(text, json.loads(text), "config")


@given(
    st.dictionaries(st.text(), VALUES),
    st.sampled_from([None, 0, 2, "\t", "\r\n"]),
    st.booleans(),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " :\t")]),
    st.sampled_from(["", "\n", " \r\n\t"]),
    st.booleans(),
)
def test_every_other_value_stays(
    fields: dict[str, Any], indent: Any, ascii_only: bool, separators: tuple[str, str], around: str, value: bool
) -> None:
    text = around + json.dumps(fields, indent=indent, ensure_ascii=ascii_only, separators=separators) + around
    changed = config(text).with_value(KEY, value)
    assert json.loads(changed) == {**fields, KEY: value}
    assert list(json.loads(changed)) == list({**fields, KEY: value})


@given(st.dictionaries(st.text(), VALUES), st.sampled_from([None, 2, "\t"]), st.booleans())
def test_every_other_byte_stays(fields: dict[str, Any], indent: Any, ascii_only: bool) -> None:
    fields = {**fields, KEY: True}

    def written(value: bool) -> str:
        return json.dumps({**fields, KEY: value}, indent=indent, ensure_ascii=ascii_only)

    assert config(written(True)).with_value(KEY, False) == written(False)
    assert config(written(False)).with_value(KEY, True) == written(True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", '{"save_projection": false}'),
        ("{ }\n", '{"save_projection": false }\n'),
        ('{"a":1}', '{"a":1,"save_projection": false}'),
        ('{\n  "a": 1\n}\n', '{\n  "a": 1,\n  "save_projection": false\n}\n'),
        ('{"a": {"save_projection": true}}', '{"a": {"save_projection": true},"save_projection": false}'),
        ('{"a": "save_projection", "save_projection":true}', '{"a": "save_projection", "save_projection":false}'),
        ('{"save_\\u0070rojection": true}', '{"save_\\u0070rojection": false}'),
        ('{"a": "}", "save_projection": "no}"}', '{"a": "}", "save_projection": false}'),
        ('{"save_projection": 1, "save_projection": true}', '{"save_projection": 1, "save_projection": false}'),
    ],
    ids=range(9),
)
def test_where_the_value_goes(text: str, expected: str) -> None:
    assert config(text).with_value(KEY, False) == expected


@pytest.mark.parametrize("value", ["8", 8.0, True, None, [], 0, -1, 101], ids=repr)
def test_a_whole_number_is_one_within_its_bounds(value: object) -> None:
    with pytest.raises(CorruptError) as raised:
        config(json.dumps({"r": value})).integer("r", 32, least=1, most=100)
    assert raised.value.code == "ADP304"


@pytest.mark.parametrize("value", ["true", 0, 1, None, []], ids=repr)
def test_a_flag_is_true_or_false(value: object) -> None:
    with pytest.raises(CorruptError):
        config(json.dumps({"sparse": value})).flag("sparse", False)


def test_missing_fields_have_pefts_defaults() -> None:
    assert config("{}").integer("r", 32) == 32
    assert config("{}").flag("sparse", False) is False
    assert config("{}").text_or_none("revision") is None
    assert config('{"revision": null}').text_or_none("revision") is None


@given(st.binary(max_size=40) | st.text().map(str.encode) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_whatever_is_in_the_file_is_a_config_or_an_error_of_ours(tmp_path_factory: Any, content: bytes) -> None:
    folder: Path = tmp_path_factory.mktemp("config")
    (folder / CONFIG).write_bytes(content)
    try:
        found = read_config(LocalFolder(folder))
    except CorruptError as error:
        code = error.code
    else:
        assert found.text.encode() == content
        assert found.peft_type
        return
    assert code == "ADP304"
