"""Fused weights are those that LyCORIS, which trains most kinds, makes of the same tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.lora.small import Small, distance, draw, fused

lycoris = pytest.importorskip(
    "lycoris", reason="LyCORIS does not run with torch before 2.4", exc_type=Exception
)

TOLERANCE = 1e-6
SCALES = (0.0, -0.7, 1.3)
LAYERS = ("linear", "square", "conv", "point")
KERNELS = ("conv",)
POWERS = ("linear", "conv", "point")  # of 2 times few is their number of outputs


class Case(NamedTuple):
    """A module of LyCORIS: its settings, and for which layers."""

    module: str
    settings: Mapping[str, Any] = {}
    layers: tuple[str, ...] = LAYERS
    follows_scale: bool = True  # or LyCORIS puts the scale inside, where 0 is no longer the weight


RANKED = {"lora_dim": 3, "alpha": 2}
DORA_OUT, DORA_IN = ({"weight_decompose": True, "wd_on_out": on_out} for on_out in (True, False))
CASES = {
    "LoRA": Case("locon.LoConModule", RANKED),
    "LoRA of rank-stabilised strength": Case("locon.LoConModule", RANKED | {"rs_lora": True}),
    "LoCon with mid": Case("locon.LoConModule", RANKED | {"use_tucker": True}, KERNELS),
    "DoRA by output": Case("locon.LoConModule", RANKED | DORA_OUT, follows_scale=False),
    "DoRA by input": Case("locon.LoConModule", RANKED | DORA_IN, follows_scale=False),
    "DoRA with mid": Case("locon.LoConModule", RANKED | DORA_IN | {"use_tucker": True}, KERNELS, False),
    "LoHa": Case("loha.LohaModule", RANKED),
    "LoHa with mid": Case("loha.LohaModule", RANKED | {"use_tucker": True}, KERNELS),
    "LoHa in DoRA": Case("loha.LohaModule", RANKED | DORA_OUT, follows_scale=False),
    "LoHa in DoRA by input": Case("loha.LohaModule", RANKED | DORA_IN, follows_scale=False),
    "LoKr": Case("lokr.LokrModule", {"lora_dim": 1, "alpha": 3, "factor": 4}),
    "LoKr of two pairs": Case(
        "lokr.LokrModule", {"lora_dim": 1, "alpha": 3, "factor": 4, "decompose_both": True}
    ),
    "LoKr, whole": Case("lokr.LokrModule", {"lora_dim": 1, "alpha": 3, "factor": 4, "full_matrix": True}),
    "LoKr, unbalanced": Case(
        "lokr.LokrModule", {"lora_dim": 1, "factor": 2, "unbalanced_factorization": True}
    ),
    "LoKr with mid": Case(
        "lokr.LokrModule", {"lora_dim": 1, "alpha": 3, "factor": 4, "use_tucker": True}, KERNELS
    ),
    "LoKr in DoRA": Case("lokr.LokrModule", {"lora_dim": 1, "factor": 4} | DORA_OUT, follows_scale=False),
    "LoKr in DoRA by input": Case("lokr.LokrModule", {"lora_dim": 1, "factor": 4} | DORA_IN, LAYERS, False),
    "(IA)3": Case("ia3.IA3Module"),
    "(IA)3 of inputs": Case("ia3.IA3Module", {"train_on_input": True}),
    "OFT": Case("diag_oft.DiagOFTModule", {"lora_dim": 4}),
    "OFT with a limit": Case("diag_oft.DiagOFTModule", {"lora_dim": 4, "constraint": 0.01}),
    "OFT rescaled": Case("diag_oft.DiagOFTModule", {"lora_dim": 4, "rescaled": True}, LAYERS, False),
    "BOFT": Case("boft.ButterflyOFTModule", {"lora_dim": 4}, POWERS, False),
    "BOFT with a limit, rescaled": Case(
        "boft.ButterflyOFTModule", {"lora_dim": 4, "constraint": 0.01, "rescaled": True}, POWERS, False
    ),
    "GLoRA": Case("glora.GLoRAModule", RANKED),
    "full": Case("full.FullModule", {}, ("linear", "plain", "conv")),
    "norm": Case("norms.NormModule", {}, ("group_norm", "layer_norm")),
}
EACH = [(name, layer) for name, case in CASES.items() for layer in case.layers]


def trained(name: str, layer: str, model: nn.Module) -> Any:
    """A module of LyCORIS for a layer, with random numbers for what it learns."""
    case = CASES[name]
    home, _, kind = case.module.partition(".")
    module = getattr(getattr(lycoris.modules, home), kind)("", model.get_submodule(layer), **case.settings)
    with torch.no_grad():
        for seed, (role, weight) in enumerate(module.named_parameters()):
            numbers = draw(seed, *weight.shape)
            near_one = role in ("dora_scale", "rescale")
            weight.copy_(weight * (1 + 0.1 * numbers) if near_one else 0.4 * numbers)
    return module


def tensors_of(module: Any, layer: str) -> dict[str, Tensor]:
    """What it saves; a full difference is one only once the module stands in for its layer."""
    if hasattr(module, "is_diff"):
        saved = {"diff": module.weight, "diff_b": module.bias}
        return {
            f"lora_unet_{layer}.{role}": each.detach() for role, each in saved.items() if each is not None
        }
    return {
        f"lora_unet_{layer}.{role}": value.detach().clone() for role, value in module.state_dict().items()
    }


@torch.no_grad()
def merged(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias that the module computes with in training."""
    if hasattr(module, "get_weight"):  # LoHa and LoKr, which when merging multiply by alpha / rank twice
        weight = module.org_weight + module.get_weight(module.shape)
        return (module.apply_weight_decompose(weight) if module.wd else weight), None
    return module.get_merged_weight(1)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("name", "layer"), EACH)
def test_weight_is_that_of_lycoris(name: str, layer: str, scale: float) -> None:
    base = Small()
    module = trained(name, layer, base)
    expected, bias = merged(module)
    tensors = tensors_of(module, layer)
    weights = dict(base.named_parameters())
    now = fused(tensors, scale=scale)
    weight = weights[f"{layer}.weight"]
    assert distance(now[f"{layer}.weight"], weight + scale * (expected - weight)) < TOLERANCE
    assert distance(expected, weight) > 0.005
    if bias is not None:
        old = weights[f"{layer}.bias"]
        assert distance(now[f"{layer}.bias"], old + scale * (bias - old)) < TOLERANCE


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("name", "layer"), [each for each in EACH if CASES[each[0]].follows_scale])
def test_scale_is_that_of_lycoris(name: str, layer: str, scale: float) -> None:
    base = Small()
    module = trained(name, layer, base)
    tensors = tensors_of(module, layer)
    if hasattr(module, "get_weight"):
        with torch.no_grad():
            expected = module.org_weight + scale * module.get_weight(module.shape)
    else:
        expected, _ = module.get_merged_weight(scale)
    assert distance(fused(tensors, scale=scale)[f"{layer}.weight"], expected.detach()) < TOLERANCE


@pytest.mark.parametrize("prefix", ["lycoris_", "lora_unet_"])
def test_names_of_its_wrapper_mean_the_same(prefix: str) -> None:
    model = Small()
    tensors = tensors_of(trained("LoHa", "conv", model), "conv")
    spelled = {key.replace("lora_unet_", prefix): value for key, value in tensors.items()}
    assert torch.equal(fused(spelled)["conv.weight"], fused(tensors)["conv.weight"])
