"""What PEFT computes from the base at loading: initialisations that change it, clusters of its rows; a method that is gone.

What PEFT loads is held against what was trained, and against what the tool says of it, before and after a conversion.
"""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from safetensors.torch import load_file, save_file
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

import adaptertool
from tests.methods.written import CANNOT_ATTACH, TARGETS, base, logits, shake, write

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

TOKENS = torch.arange(1, 33).reshape(4, 8)
CHANGING = ("pissa", "pissa_niter_2", "olora", "corda", "lora_ga")
FIELDS: dict[str, dict[str, Any]] = {
    "eva": {"eva_config": EvaConfig(rho=1.0)},
    "corda": {"corda_config": CordaConfig()},
    "lora_ga": {"lora_ga_config": LoraGAConfig()},
}


def attached(bare: PreTrainedModel, how: str) -> PeftModel:
    """The base with a LoRA of that initialisation, as each of them wants it."""
    fields = FIELDS.get(how, {})
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        target_modules=TARGETS["llama"],
        init_lora_weights=how,  # type: ignore[arg-type]  # PEFT's annotation leaves one out
        **fields,
    )
    torch.manual_seed(1)
    if how == "corda":
        preprocess_corda(bare, config, lambda: bare(TOKENS.reshape(1, -1)))
    if how == "lora_ga":

        def step() -> None:
            bare(TOKENS, labels=TOKENS).loss.backward()

        preprocess_loraga(bare, config, step)
    model = get_peft_model(bare, config, low_cpu_mem_usage=how == "eva")
    if how == "eva":
        data = [{"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}] * 4
        initialize_lora_eva_weights(model, data, show_progress_bar=False)
    assert isinstance(model, PeftModel)
    return model


class Trained:
    """An adapter before and after training, the base that it was trained on, and what came out.

    Attributes:
        adapter: As PEFT saves it.
        converted: As PEFT saves it with `path_initial_model_for_weight_conversion`.
        original: The base.
        changed: The base as it was while the adapter was trained.
        logits: What the trained model computes.
    """

    def __init__(self, how: str, folder: Path) -> None:
        self.adapter, self.converted = folder / "adapter", folder / "converted"
        self.original, self.changed = folder / "original", folder / "changed"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base("llama").save_pretrained(self.original)
            model = attached(base("llama"), how)
            model.save_pretrained(str(folder / "initial"))
            shake(model)
            self.logits = logits(model.eval())
            model.save_pretrained(str(self.adapter))
            if how in CHANGING:
                initial = str(folder / "initial")
                model.save_pretrained(str(self.converted), path_initial_model_for_weight_conversion=initial)
            model.unload().save_pretrained(self.changed)

    def merged(self, adapter: Path, onto: Path) -> torch.Tensor:
        """What PEFT's merge of a saved adapter into a saved base gives."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bare = type(base("llama")).from_pretrained(onto)
            torch.manual_seed(99)
            return logits(PeftModel.from_pretrained(bare, str(adapter)).merge_and_unload(safe_merge=True).eval())

    def is_right(self, adapter: Path, onto: Path) -> bool:
        """Whether that is what was trained."""
        effect = float((self.logits - logits(base("llama"))).abs().max())
        return float((self.merged(adapter, onto) - self.logits).abs().max()) <= 1e-3 * effect


@pytest.mark.parametrize("how", ["pissa", "olora", "eva"])
def test_what_is_found_again_at_loading_merges_rightly(how: str, tmp_path: Path) -> None:
    trained = Trained(how, tmp_path)
    assert adaptertool.check_merge(trained.adapter, trained.original).verdict == "mergeable"
    assert trained.is_right(trained.adapter, trained.original)
    assert not adaptertool.inspect(trained.adapter).findings


@pytest.mark.parametrize("how", CHANGING)
def test_a_converted_adapter_is_a_plain_lora(how: str, tmp_path: Path) -> None:
    trained = Trained(how, tmp_path)
    assert adaptertool.check_merge(trained.converted, trained.original).verdict == "mergeable"
    assert trained.is_right(trained.converted, trained.original)
    assert not adaptertool.inspect(trained.converted).findings


def test_random_numbers_take_another_part_out(tmp_path: Path) -> None:
    trained = Trained("pissa_niter_2", tmp_path)
    for onto in (trained.original, trained.changed):
        report = adaptertool.check_merge(trained.adapter, onto)
        assert (report.verdict, [one.code for one in report.findings]) == ("lossy", ["ADP209"])
        assert not trained.is_right(trained.adapter, onto)
    assert [one.code for one in adaptertool.inspect(trained.adapter).findings] == ["ADP305"]

    # What the finding says can be done.
    path = trained.adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "init_lora_weights": True}))
    assert adaptertool.check_merge(trained.adapter, trained.changed).verdict == "mergeable"
    assert trained.is_right(trained.adapter, trained.changed)


def test_what_needed_gradients_is_right_on_the_changed_base_alone(tmp_path: Path) -> None:
    trained = Trained("lora_ga", tmp_path)
    assert [one.code for one in adaptertool.inspect(trained.adapter).findings] == ["ADP305"]
    for onto, right in ((trained.original, False), (trained.changed, True)):
        assert trained.is_right(trained.adapter, onto) is right
        report = adaptertool.check_merge(trained.adapter, onto)
        assert (report.verdict, report.exit_code) == ("unknown", 3)
        assert "saved in between" in (report.layers[0].reason or "")


def test_corda_raises_at_loading(tmp_path: Path) -> None:
    trained = Trained("corda", tmp_path)
    with pytest.raises(ValueError, match="preprocess_corda"):
        trained.merged(trained.adapter, trained.original)
    report = adaptertool.check_merge(trained.adapter, trained.original)
    assert (report.verdict, [one.code for one in report.findings]) == ("not-mergeable", ["ADP206"])
    assert "preprocess_corda" in report.findings[0].message
    assert [one.code for one in adaptertool.inspect(trained.adapter).findings] == ["ADP305"]


def test_loftq_depends_on_the_machine(tmp_path: Path) -> None:
    written = write(tmp_path / "adapter", "LORA")
    path = written.folder / "adapter_config.json"
    settings = {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    base("llama").save_pretrained(tmp_path / "base")
    report = adaptertool.check_merge(written.folder, tmp_path / "base")
    assert (report.verdict, report.exit_code) == ("unknown", 3)
    if not torch.cuda.is_available():
        with pytest.raises((ImportError, ValueError, AssertionError)):
            written.loaded(written.folder)


@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal", True])
@pytest.mark.parametrize("stored", [1, 4])
def test_a_layer_with_fewer_outputs_than_the_rank(init: Any, stored: int, tmp_path: Path) -> None:
    """Such as the gate of Qwen2-MoE's shared expert: a decomposition of it has one part."""
    config = Qwen2MoeConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=2,
        num_experts_per_tok=1,
    )
    Qwen2MoeForCausalLM(config).save_pretrained(tmp_path / "base")
    lora = LoraConfig(
        target_modules=["shared_expert_gate", "v_proj"], r=4, init_lora_weights=init, task_type="CAUSAL_LM"
    )
    model = get_peft_model(Qwen2MoeForCausalLM.from_pretrained(tmp_path / "base"), lora)
    model.save_pretrained(str(tmp_path / "adapter"))
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    state = load_file(path)
    due = {}
    for name, tensor in state.items():
        rank = stored if "shared_expert_gate" in name else 4
        due[name] = tensor.new_zeros((rank, 16) if "lora_A" in name else (tensor.shape[0], rank))
    save_file(due, path, {"format": "pt"})
    try:
        bare = Qwen2MoeForCausalLM.from_pretrained(tmp_path / "base")
        PeftModel.from_pretrained(bare, tmp_path / "adapter").merge_and_unload(safe_merge=True)
        merges = True
    except RuntimeError:
        merges = False
    assert merges == (stored == (1 if init in ("pissa", "olora") else 4))
    report = adaptertool.check_merge(tmp_path / "adapter", tmp_path / "base")
    assert report.verdict == ("mergeable" if merges else "not-mergeable")


@pytest.mark.parametrize(("peft_type", "arguments"), [("ADAMSS", {}), ("PSOFT", {"psoft_svd": "lowrank"})])
def test_what_an_older_peft_did_not_seed_is_lost(peft_type: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    """PEFT 0.20 brought the seed into the config; what 0.19.1 wrote, each version loaded to other outputs."""
    if "llama" in CANNOT_ATTACH.get(peft_type, ()):
        pytest.skip("scikit-learn is not installed")
    written = write(tmp_path / "adapter", peft_type, **arguments)
    base("llama").save_pretrained(tmp_path / "base")
    assert not adaptertool.inspect(written.folder).findings
    assert adaptertool.check_merge(written.folder, tmp_path / "base").verdict == "mergeable"
    path = written.folder / "adapter_config.json"
    config = json.loads(path.read_text())
    del config["random_seed"]
    path.write_text(json.dumps({**config, "peft_version": "0.19.1"}))
    assert [one.code for one in adaptertool.inspect(written.folder).findings] == ["ADP305"]
    report = adaptertool.check_merge(written.folder, tmp_path / "base")
    assert (report.verdict, [one.code for one in report.findings]) == ("lossy", ["ADP209"])


def test_bone_is_gone(tmp_path: Path) -> None:
    """As PEFT up to 0.18 wrote it: MiSS by another name."""
    written = write(tmp_path, "MISS")
    trained = adaptertool.inspect(tmp_path).adapter.parameters
    path = tmp_path / "adapter_model.safetensors"
    save_file({name.replace(".miss_", ".bone_"): one for name, one in load_file(path).items()}, path, {"format": "pt"})
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": "BONE"}))
    result = adaptertool.inspect(tmp_path)
    assert (result.adapter.peft_type, result.adapter.parameters, result.adapter.rank) == ("BONE", trained, 2)
    assert {one.role for one in result.roles} == {"trainable"}
    with pytest.raises((KeyError, ValueError)):
        written.loaded(tmp_path)
    report = adaptertool.check_merge(tmp_path, tmp_path)
    assert (report.verdict, [one.code for one in report.findings]) == ("not-mergeable", ["ADP206"])
    assert "convert-bone-to-miss" in report.findings[0].message


@pytest.mark.parametrize(
    ("settings", "verdict"),
    [
        ({"peft_version": "0.99.0", "use_the_latest": True}, "unknown"),
        ({"peft_version": "0.99.0", "use_the_latest": False}, "mergeable"),
        ({"peft_version": "0.18.1", "use_what_was": True}, "mergeable"),
        ({"peft_version": "0.99.0"}, "mergeable"),
        ({"init_lora_weights": "the_latest"}, "unknown"),
    ],
)
def test_what_a_newer_peft_knows_is_open(settings: dict[str, Any], verdict: str, tmp_path: Path) -> None:
    written = write(tmp_path / "adapter", "LORA")
    base("llama").save_pretrained(tmp_path / "base")
    path = written.folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    report = adaptertool.check_merge(written.folder, tmp_path / "base")
    assert report.verdict == verdict
    if "init_lora_weights" in settings:
        with pytest.raises(ValueError, match="Unknown initialization"):
            written.loaded(written.folder)
    elif verdict == "unknown":
        assert "use_the_latest" in (report.layers[0].reason or "")


@pytest.mark.parametrize(
    ("peft_type", "bias", "family", "lost"),
    [
        ("LORA", "lora_only", "opt", True),
        ("LORA", "lora_only", "llama", False),
        ("LORA", "all", "opt", False),
        ("VERA", "all", "opt", True),
        ("VERA", "vera_only", "qwen2", True),
        ("OFT", "oft_only", "opt", True),
    ],
)
def test_biases_that_older_versions_did_not_save(
    peft_type: str, bias: str, family: str, lost: bool, tmp_path: Path
) -> None:
    """What PEFT 0.19.1 and 0.20.0 wrote held none of them; 0.21.0 and newer keep them all."""
    written = write(tmp_path / "adapter", peft_type, family, bias=bias)
    base(family).save_pretrained(tmp_path / "base")
    assert adaptertool.check_merge(written.folder, tmp_path / "base").verdict == "mergeable"
    assert "ADP305" not in [one.code for one in adaptertool.inspect(written.folder).findings]

    weights, config = written.folder / "adapter_model.safetensors", written.folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "peft_version": "0.20.0"}))
    if (peft_type, bias) != ("LORA", "all"):
        kept = {name: one for name, one in load_file(weights).items() if not name.endswith(".bias")}
        save_file(kept, weights, {"format": "pt"})
    assert torch.equal(logits(written.loaded(written.folder)), written.logits) is not lost
    report = adaptertool.check_merge(written.folder, tmp_path / "base")
    assert report.verdict == ("lossy" if lost else "mergeable")
    assert [one.code for one in report.findings] == (["ADP209"] if lost else [])
    assert ("ADP305" in [one.code for one in adaptertool.inspect(written.folder).findings]) == (bias != "all" or lost)
