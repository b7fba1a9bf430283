"""Fused weights are those that peft merges, from the files that peft saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.boft import layer as boft_layer
from torch import Tensor

from lib_accel.lora import rotation
from lib_accel.lora.formats import read_network
from tests.lora.small import Small, distance, draw, fused

pytestmark = pytest.mark.filterwarnings("ignore")  # peft's, about its own settings

TOLERANCE = 1e-6
SCALES = (0.0, -0.7, 1.3)
LINEAR = ["linear", "square", "plain"]
ALL = [*LINEAR, "conv", "point"]
CASES: dict[str, Any] = {
    "LoRA": peft.LoraConfig(r=3, lora_alpha=2, target_modules=ALL),
    "LoRA with biases": peft.LoraConfig(r=3, lora_alpha=2, target_modules=["linear", "conv"], lora_bias=True),
    "LoRA with patterns": peft.LoraConfig(
        r=3, lora_alpha=2, target_modules=ALL, alpha_pattern={"square": 7}, rank_pattern={"plain": 5}
    ),
    "LoRA of rank-stabilised strength": peft.LoraConfig(r=3, target_modules=ALL, use_rslora=True),
    "DoRA": peft.LoraConfig(r=3, lora_alpha=2, target_modules=ALL, use_dora=True),
    "LoHa": peft.LoHaConfig(r=3, alpha=2, target_modules=ALL),
    "LoHa with mid": peft.LoHaConfig(r=3, alpha=2, target_modules=["conv"], use_effective_conv2d=True),
    "LoKr": peft.LoKrConfig(r=1, alpha=2, target_modules=ALL, decompose_factor=4),
    "LoKr of two pairs": peft.LoKrConfig(
        r=1, alpha=2, target_modules=ALL, decompose_factor=4, decompose_both=True
    ),
    "LoKr, whole": peft.LoKrConfig(r=40, alpha=60, target_modules=ALL),
    "LoKr with mid": peft.LoKrConfig(
        r=1, alpha=2, target_modules=["conv"], decompose_factor=4, use_effective_conv2d=True
    ),
    "(IA)3": peft.IA3Config(target_modules=ALL, feedforward_modules=["square"]),
    "OFT": peft.OFTConfig(oft_block_size=4, target_modules=ALL),
    "OFT of three terms": peft.OFTConfig(oft_block_size=4, target_modules=ALL, num_cayley_neumann_terms=3),
    "OFT of two terms": peft.OFTConfig(oft_block_size=4, target_modules=ALL, num_cayley_neumann_terms=2),
    "OFT of eight terms": peft.OFTConfig(oft_block_size=4, target_modules=ALL, num_cayley_neumann_terms=8),
    "OFT, exact": peft.OFTConfig(oft_block_size=4, target_modules=ALL, use_cayley_neumann=False),
    "OFT of one block": peft.OFTConfig(oft_block_size=4, target_modules=ALL, block_share=True),
    "BOFT": peft.BOFTConfig(boft_block_size=4, target_modules=ALL),
    "BOFT of three levels": peft.BOFTConfig(
        boft_block_size=2, boft_n_butterfly_factor=3, target_modules=[*LINEAR, "conv"]
    ),
}


class BlockDiagonal:
    """What peft's CUDA extension computes, which only it has for more than one level."""

    @staticmethod
    def apply(blocks: Tensor) -> Tensor:
        return torch.stack([torch.block_diag(*level) for level in blocks])


@pytest.fixture(autouse=True)
def _without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(boft_layer, "FastBlockDiag", BlockDiagonal)


def trained(name: str) -> Any:
    """A Small with an adapter whose numbers are random."""
    model = peft.get_peft_model(Small(), CASES[name])
    with torch.no_grad():
        adapter = ((key, weight) for key, weight in model.named_parameters() if weight.requires_grad)
        for seed, (key, weight) in enumerate(adapter):
            near_one = any(part in key for part in ("magnitude", "ia3", "boft_s"))
            numbers = draw(seed, *weight.shape)
            weight.copy_(weight * (1 + 0.1 * numbers) if near_one else 0.3 * numbers)
    return model


def targets(name: str) -> list[str]:
    """The parameters that change."""
    layers = [f"{layer}.weight" for layer in sorted(CASES[name].target_modules)]
    return layers + [f"{layer}.bias" for layer in ("linear", "conv", "point") if f"{layer}.weight" in layers]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_that_peft_merges(name: str, scale: float, tmp_path: Path) -> None:
    model, base = trained(name), dict(Small().named_parameters())
    model.save_pretrained(tmp_path)
    expected = dict(model.merge_and_unload().named_parameters())
    now = fused(tmp_path / "adapter_model.safetensors", scale=scale)
    for path in targets(name):
        wanted = base[path] + scale * (expected[path] - base[path])
        assert distance(now[path], wanted) < TOLERANCE, path
    assert all(torch.equal(now[path], base[path]) for path in base.keys() - set(targets(name)))


@pytest.mark.parametrize("name", CASES)
def test_live_names_with_the_adapter_in_them_mean_the_same(name: str, tmp_path: Path) -> None:
    model = trained(name)
    model.save_pretrained(tmp_path)
    file = read_network(tmp_path / "adapter_model.safetensors")
    live = {key: weight for key, weight in model.named_parameters() if weight.requires_grad}
    network = read_network(live)
    assert all(".default" in key for key in live)
    assert network.ignored == file.ignored == ()
    assert set(network.layers) == set(file.layers)


def test_vector_that_is_no_half_of_a_matrix_has_no_side() -> None:
    assert [rotation.block_size(entries) for entries in (1, 3, 6, 10, 4, 7)] == [2, 3, 4, 5, 0, 0]
