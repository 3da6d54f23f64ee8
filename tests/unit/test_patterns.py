"""Patterns of configs are matched as `re` matches them, and none for ever."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptertool
from adaptertool import patterns
from adaptertool.errors import CorruptError, UnsupportedError
from tests.methods.written import base, write

if TYPE_CHECKING:
    from pathlib import Path

ENDLESS = [r"(([a-z_0-9]+)*\.?)*!", r".*(a|a)*!", r".*.*.*.*.*.*.*!", "(" * 10 + "[a-z._0-9]*" + ")*" * 10 + "!"]
TEXT = (
    "base_model.model.model.layers.0.self_attn.q_proj.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
)
# What Unsloth writes for vision-language models.
UNSLOTH = (
    r"(?:.*?(?:vision|image|visual|patch|language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)"
    r".*?(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|correct|linear).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)\.(?:(?:q_proj|k_proj|v_proj|o_proj)))"
)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.7)
    monkeypatch.setattr(patterns._WORKER, "_spent", {})


@pytest.mark.parametrize("pattern", ENDLESS)
def test_an_endless_match_is_ended(pattern: str) -> None:
    began = time.monotonic()
    with pytest.raises(UnsupportedError, match="takes too long"):
        patterns.match(pattern, TEXT, "target_modules", whole=True)
    assert time.monotonic() - began < 5
    with pytest.raises(UnsupportedError):
        patterns.match(pattern, TEXT, "target_modules")
    assert patterns.match(r"(a|b)*", "ab", "target_modules", whole=True) is not None


_PARTS = ["a", "b", ".", r"\.", r"\d", "[ab]", "[^a]", "(a|b)", "(?:ab)", "(?P<idx>a)", "(?!b)", "^", "$", "|"]
_PIECES = st.tuples(st.sampled_from(_PARTS), st.sampled_from(["", "", "*", "+", "?", "*?", "{1,2}"]))


@given(st.lists(_PIECES, max_size=6), st.text("ab.0", max_size=8), st.booleans())
@settings(max_examples=300, deadline=None)
def test_matches_are_those_of_re(pieces: list[tuple[str, str]], text: str, whole: bool) -> None:
    pattern = "".join(part + quantifier for part, quantifier in pieces)
    try:
        due: Any = (re.fullmatch if whole else re.match)(pattern, text)
    except re.error:
        with pytest.raises(CorruptError):
            patterns.match(pattern, text, "a field", whole=whole)
        return
    found = patterns.match(pattern, text, "a field", whole=whole)
    assert found == (None if due is None else due.groupdict())


@pytest.mark.parametrize(
    ("module", "matches"),
    [
        ("model.layers.11.self_attn.q_proj", True),
        ("model.language_model.layers.1.mlp.up_proj", True),
        ("lm_head", False),
    ],
)
def test_an_ordinary_pattern_that_could_take_many_steps(module: str, matches: bool) -> None:
    assert (patterns.match(UNSLOTH, module, "target_modules", whole=True) is not None) is matches


@pytest.mark.parametrize("pattern", ["(", "*", "a{2,1}", "(?P<a>", "(" * 9999])
def test_what_is_no_regular_expression(pattern: str) -> None:
    with pytest.raises(CorruptError) as caught:
        patterns.match(pattern, "a", "target_modules")
    assert caught.value.code == "ADP304"
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ENDLESS[0]},
        {"exclude_modules": ENDLESS[0]},
        {"modules_to_save": [ENDLESS[0]]},
        {"layers_to_transform": [0], "layers_pattern": ENDLESS[0]},
        {"rank_pattern": {ENDLESS[0]: 4}},
        {"alpha_pattern": {ENDLESS[0]: 4}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_an_endless_pattern_in_a_config(fields: dict[str, Any], tmp_path: Path) -> None:
    base("llama").save_pretrained(tmp_path / "base")
    write(tmp_path / "adapter", "LORA")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(UnsupportedError, match="takes too long") as caught:
        adaptertool.check_merge(tmp_path / "adapter", tmp_path / "base")
    assert caught.value.exit_code == 3
