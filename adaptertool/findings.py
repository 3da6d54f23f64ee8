"""The finding codes: what each means, why it matters, what to do.

Codes are stable and never reused. ADP1xx is about projections, ADP2xx about merging, ADP3xx about the checkpoint itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""From the gravest to the mildest."""


@dataclass(frozen=True)
class Code:
    """What one code stands for.

    Attributes:
        code: Such as `ADP101`.
        name: A short name with dashes.
        severity: How grave a finding of it is.
        meaning: What was seen, in a sentence or two.
        why: Why it matters.
        remedy: What to do.
        example: A command line, and what it is for.
    """

    code: str
    name: str
    severity: Severity
    meaning: str
    why: str
    remedy: str
    example: str


@dataclass(frozen=True)
class Finding:
    """One thing that a user should know about a checkpoint.

    Attributes:
        code: A key of `CODES`.
        message: What was found here, in one sentence.
        tensors: Names of the tensors it is about, all of them.
        count: How many things it is about; the number of tensors where it is about tensors.
        bytes: How many bytes it is about, where that is known.
        fix: A command that mends it, or what to do.
    """

    code: str
    message: str
    tensors: tuple[str, ...] = ()
    count: int = 0
    bytes: int | None = None
    fix: str | None = None

    @property
    def name(self) -> str:
        """The code's short name."""
        return CODES[self.code].name

    @property
    def severity(self) -> Severity:
        """How grave it is."""
        return CODES[self.code].severity


_CODES = (
    Code(
        "ADP101",
        "projection-stored-needlessly",
        "warning",
        "The file stores random projections that were compared with what the torch that will load it draws from the "
        "config's seed, and are the same bit for bit.",
        "They were never trained. A 4B model's RandLoRA adapter holds 0.25 GB that were, and 42 GB of copies of one "
        "random basis: storage, uploads and every download carry them.",
        "Strip them. slim compares every stored copy in full before it writes anything, and sets save_projection to "
        "false, so that PEFT draws them when it loads the adapter.",
        "adaptertool slim ./adapter -o ./adapter-slim",
    ),
    Code(
        "ADP102",
        "projection-copies",
        "warning",
        "One shared projection is written into the file once more for every target layer.",
        "PEFT loads the canonical pair, base_model.randlora_A and base_model.randlora_B, and ignores the copies under the "
        "layers. RandLoRA lacks the filter that keeps VeRA's copies out of the file, up to and including PEFT 0.21.2.",
        "Keep one copy. That is safe under every torch, because nothing has to be drawn again.",
        "adaptertool slim ./adapter --keep-one-copy -o ./adapter-slim",
    ),
    Code(
        "ADP103",
        "projection-from-another-sampler",
        "warning",
        "The stored projections are those that a known sampler draws from the config's seed, but not the sampler of the "
        "torch that will load this adapter.",
        "torch 2.12 changed how 16-bit uniform numbers are drawn on the CPU, and fused multiply-add changes single "
        "elements. Stripped, this adapter would load without an error and compute something else.",
        "Keep one copy; or, where the adapter will be loaded under that other torch, strip it for that version.",
        "adaptertool slim ./adapter --for-torch 2.11 -o ./adapter-slim",
    ),
    Code(
        "ADP104",
        "projection-unknown",
        "warning",
        "No known recipe draws the stored projections from this config.",
        "They may be drawn from another seed or rank, be shared with another adapter, or have been changed. PEFT "
        "computes with what is stored, and nothing could bring it back.",
        "Keep them. One copy is enough where all copies are the same.",
        "adaptertool slim ./adapter --keep-one-copy -o ./adapter-slim",
    ),
    Code(
        "ADP105",
        "projection-copies-differ",
        "error",
        "Copies of what should be one shared projection are not the same bytes.",
        "PEFT uses the canonical pair and ignores the copies; other programs may not. A file like this was damaged, or "
        "merged from several.",
        "Find out which copy the adapter was trained with, from a backup or the training run. --force keeps the "
        "canonical pair, which is the one that PEFT loads.",
        "adaptertool slim ./adapter --keep-one-copy --force -o ./adapter-slim",
    ),
    Code(
        "ADP106",
        "save-projection-flag-wrong",
        "warning",
        "The config's save_projection says one thing and the file another.",
        "With the flag false PEFT ignores stored projections and draws others; with the flag true it expects them, and "
        "VeRA and PVeRA refuse to load without.",
        "Let slim strip them if they verify, or let restore set the flag where the stored ones should count.",
        "adaptertool restore ./adapter --in-place",
    ),
    Code(
        "ADP107",
        "projection-absent-unproven",
        "warning",
        "The projections are not in the file, and nothing says which torch drew the ones that this adapter was trained "
        "with.",
        "PEFT draws them again from the seed. If the adapter was trained under torch 2.11 or older and is loaded under 2.12 "
        "or newer, or the other way round, it gets another basis and computes something else, without an error.",
        "If you know the torch version of the training run, restore the projections for it; otherwise compare outputs with "
        "ones from the training environment.",
        "adaptertool restore ./adapter --for-torch 2.11 --base org/base-model -o ./adapter-restored",
    ),
    Code(
        "ADP108",
        "projection-absent-mismatch",
        "error",
        "The projections were stripped, and the fingerprint that was left says that the torch here draws other ones from "
        "this config.",
        "Loaded here, the adapter would compute something else than it was trained to, without an error.",
        "Restore them from the fingerprint, which does not need the torch that drew them.",
        "adaptertool restore ./adapter -o ./adapter-restored",
    ),
    Code(
        "ADP110",
        "base-copy-stored",
        "info",
        "The file holds embeddings of the base model that were not trained.",
        "PEFT saves them where the adapter targets an embedding, where the vocabulary was resized, or where it was asked to. "
        "A copy of an embedding of 128,000 tokens takes a gigabyte, in an adapter of some megabytes.",
        "Let slim compare them with the base: those that are the base's own, byte for byte, can go. Those of a resized "
        "vocabulary have to stay.",
        "adaptertool slim ./adapter --base org/base-model -o ./adapter-slim",
    ),
    Code(
        "ADP201",
        "no-bias-to-merge-into",
        "error",
        "The adapter trained a bias for a layer that has none in the base model.",
        "PEFT can add a bias update only to a bias. merge_and_unload raises at the first such layer and leaves the model "
        "partly merged.",
        "Serve the adapter unmerged; or do as check-merge says for this base: it names the config fields that create the "
        "missing biases, or the layers that have one, to train on.",
        "adaptertool check-merge ./adapter --base ./base",
    ),
    Code(
        "ADP202",
        "base-layer-missing",
        "error",
        "The adapter holds tensors for a layer that the base model does not have.",
        "The adapter belongs to another base, or to another version of it.",
        "Name the base that the adapter was trained on.",
        "adaptertool check-merge ./adapter --base org/base-model",
    ),
    Code(
        "ADP203",
        "base-layer-shape",
        "error",
        "The adapter's tensor does not fit the shape of the base model's layer.",
        "PEFT fails to load or to merge it.",
        "Name the base that the adapter was trained on.",
        "adaptertool check-merge ./adapter --base org/base-model",
    ),
    Code(
        "ADP204",
        "merged-not-finite",
        "error",
        "Merging gives NaN or infinity.",
        "merge_and_unload(safe_merge=True) raises where it sees them, which is before the sum is rounded to the base's dtype: "
        "an overflow in float16 passes. Then, and without safe_merge, the broken values are written without an error.",
        "Go back to an earlier checkpoint of the training run, or merge in a dtype with a larger range.",
        "adaptertool check-merge ./adapter --base ./base --dtype float32",
    ),
    Code(
        "ADP205",
        "update-lost-to-rounding",
        "warning",
        "A large part of the update disappears when the merged values are rounded to the base model's dtype, or an unknown "
        "part when the merged weights are quantised again.",
        "The merged model is not what the adapter computes. Quantised to 4 bits, small models lost as much as the whole "
        "update, and to 8 bits up to half of it.",
        "Merge in a wider dtype, or into the base as it was before it was quantised; or serve the adapter unmerged. Of a "
        "bias, more than a quarter of the update's length counts as large; --threshold sets another share.",
        "adaptertool check-merge ./adapter --base ./base --dtype float32",
    ),
    Code(
        "ADP206",
        "method-cannot-merge",
        "error",
        "PEFT has no merge for this method, or not with this adapter's settings.",
        "merge_and_unload raises, or returns a model without the adapter.",
        "Serve the adapter unmerged.",
        "adaptertool check-merge ./adapter --base ./base",
    ),
    Code(
        "ADP207",
        "base-layer-unsupported",
        "error",
        "The base model's layer is of a kind that PEFT cannot merge this adapter into.",
        "merge_and_unload raises.",
        "Merge into an unquantised base, or serve the adapter unmerged.",
        "adaptertool check-merge ./adapter --base ./base",
    ),
    Code(
        "ADP208",
        "bias-not-in-base-file",
        "warning",
        "The base's config gives a layer a bias, and its file stores none.",
        "transformers creates such a bias as zeros when it loads the base, and PEFT merges into that. The merged model is "
        "what the adapter computes, but the file and the config do not belong together.",
        "Check that the base was downloaded completely and that its config is its own.",
        "adaptertool check-merge ./adapter --base ./base",
    ),
    Code(
        "ADP209",
        "merge-changes-outputs",
        "error",
        "The merge raises nothing, and the merged model computes something else than the adapter.",
        "Nothing tells: the model loads and runs. Tied embeddings change at both ends, replicated layers share what was "
        "trained apart, and a router's choice is lost.",
        "Serve the adapter unmerged; for tied embeddings, untie them in the base before merging.",
        "adaptertool check-merge ./adapter --base ./base",
    ),
    Code(
        "ADP210",
        "tensors-not-loaded",
        "warning",
        "The file holds tensors that PEFT does not load, because the adapter's config makes no place for them; or "
        "that it loads only if the adapter is given the name that they hold, as in lora_A.default.weight.",
        "PEFT goes by the config: it attaches to the layers that target_modules names, and leaves out what a file holds "
        "beyond that without an error. The update that these tensors hold takes part in nothing, merged or not.",
        "Restore the adapter_config.json that was saved with these weights; or save the adapter again, with PEFT's "
        "save_pretrained, where its names are those of a model's own state dict.",
        "adaptertool check-merge ./adapter --base ./base",
    ),
    Code(
        "ADP211",
        "layer-not-trained",
        "warning",
        "The adapter's config targets a layer for which the file lacks tensors.",
        "PEFT attaches an update of its own there, one that nobody trained, and merges it with the rest. Most methods "
        "begin with an update that changes nothing; the merge then works, and the layer stays as it was.",
        "If the layer was trained, go back to a checkpoint that holds it; if not, take it out of target_modules.",
        "adaptertool check-merge ./adapter --base ./base",
    ),
    Code(
        "ADP301",
        "not-finite",
        "error",
        "A tensor holds NaN or infinity.",
        "Whatever the model computes with it is NaN or infinite too. Usually training diverged before it was saved.",
        "Go back to an earlier checkpoint.",
        "adaptertool inspect ./adapter --verify full",
    ),
    Code(
        "ADP302",
        "pickle-weights",
        "warning",
        "The weights are a pickle, adapter_model.bin.",
        "Loading a pickle can run whatever code is in it. This tool opens it with weights_only=True, which runs none.",
        "Save the adapter as safetensors. slim and restore write safetensors where they have something to do.",
        "python -c \"from peft import AutoPeftModel; AutoPeftModel.from_pretrained('adapter').save_pretrained('safe')\"",
    ),
    Code(
        "ADP303",
        "empty-or-placeholder-weights",
        "error",
        "The weights file is empty, holds no tensors, or is a git-LFS pointer in place of the weights.",
        "There is nothing to load. A pointer means that the repo was cloned without git-LFS, or that a pointer was uploaded.",
        "Fetch the file itself; where a repo on the Hub holds a pointer, upload the file that it stands for. PEFT 0.21.2 "
        "saves an X-LoRA whose classifier has one layer without any tensor: save those tensors of the trained model's "
        "state_dict() whose names hold internal_xlora_classifier, under these names.",
        "git lfs pull",
    ),
    Code(
        "ADP304",
        "config-missing-or-invalid",
        "error",
        "adapter_config.json is missing, is no valid JSON object, names no peft_type, or holds a value that makes no sense.",
        "PEFT can't load the adapter, and nothing about its projections can be told without it.",
        "Restore the config that was saved with these weights.",
        "adaptertool inspect ./adapter",
    ),
    Code(
        "ADP305",
        "loads-as-something-else",
        "warning",
        "What PEFT draws, computes from the base or takes from it when it loads this adapter is not what it was in training.",
        "PiSSA, CorDA and LoRA-GA move a part of each base weight into the adapter. At loading, pissa_niter_… finds another "
        "part, with random numbers; LoRA-GA takes none out; CorDA raises. AdaMSS and PSOFT's fast decomposition used random "
        "numbers without a seed up to PEFT 0.19, and up to 0.20 most trained biases were not saved. PEFT 0.21.2 leaves layers "
        "of X-LoRA's classifier out of the file. The adapter then computes something else than it was trained to, merged or "
        "not, mostly without an error.",
        "Compare outputs with ones from the training run. There, a LoRA can be saved again with "
        "path_initial_model_for_weight_conversion; or the changed base can be saved beside it, onto which it loads with "
        "init_lora_weights set to true.",
        "adaptertool inspect ./adapter",
    ),
)

CODES: Mapping[str, Code] = {code.code: code for code in _CODES}
"""All codes, by code."""


def gravest_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The same, errors before warnings: who reads only the first has read the gravest."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))
