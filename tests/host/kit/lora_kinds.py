"""Random LoRA and LyCORIS state dicts that fit the layers of a checkpoint.

Every update is scaled to a fixed share of the norm of the weight it changes, so that each file visibly
changes an image without destroying it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .lora_names import Layer, layers

IA3_ON_OUTPUT = ("_to_k", "_to_v", "_k_proj", "_v_proj")
IA3_ON_INPUT = ("_ff_net_2", "_mlp_fc2")
KRON_FACTOR = 4
OFT_BLOCKS = 4


@dataclass(frozen=True)
class Recipe:
    """How large an update is: its rank, and the norm of the update as a share of the norm of the weight."""

    rank: int
    share: float
    generator: torch.Generator

    def randn(self, *shape: int) -> Tensor:
        """Draw normal random numbers from the generator of this file."""
        return torch.randn(shape, generator=self.generator)

    def gain(self, weight: Tensor, delta: Tensor) -> float:
        """Factor that brings ``delta`` to the wanted share of ``weight``."""
        return self.share * float(weight.norm()) / max(float(delta.norm()), 1e-12)


def lora(layer: Layer, recipe: Recipe) -> dict[str, Tensor]:
    """W + up @ down."""
    out, *rest = layer.weight.shape
    down, up = recipe.randn(recipe.rank, *rest), recipe.randn(out, recipe.rank)
    gain = math.sqrt(recipe.gain(layer.weight, up @ down.flatten(1)))
    return {
        "lora_down.weight": down * gain,
        "lora_up.weight": (up * gain).reshape(out, recipe.rank, *[1] * (layer.weight.ndim - 2)),
        "alpha": torch.tensor(float(recipe.rank)),
    }


def dora(layer: Layer, recipe: Recipe) -> dict[str, Tensor]:
    """LoRA followed by a rescaling of each input column to a stored norm."""
    norm = layer.weight.transpose(0, 1).flatten(1).norm(dim=1)
    scale = norm * (1 + 0.1 * recipe.randn(norm.numel()))
    return lora(layer, recipe) | {"dora_scale": scale.reshape(1, -1, *[1] * (layer.weight.ndim - 2))}


def loha(layer: Layer, recipe: Recipe) -> dict[str, Tensor]:
    """W + (w1_a @ w1_b) * (w2_a @ w2_b)."""
    out, inner = layer.weight.flatten(1).shape
    w1_a, w2_a = recipe.randn(out, recipe.rank), recipe.randn(out, recipe.rank)
    w1_b, w2_b = recipe.randn(recipe.rank, inner), recipe.randn(recipe.rank, inner)
    gain = recipe.gain(layer.weight, (w1_a @ w1_b) * (w2_a @ w2_b)) ** 0.25
    return {
        "hada_w1_a": w1_a * gain,
        "hada_w1_b": w1_b * gain,
        "hada_w2_a": w2_a * gain,
        "hada_w2_b": w2_b * gain,
        "alpha": torch.tensor(float(recipe.rank)),
    }


def lokr(layer: Layer, recipe: Recipe) -> dict[str, Tensor]:
    """W + kron(w1, w2_a @ w2_b)."""
    out, inner = layer.weight.flatten(1).shape
    w1 = recipe.randn(KRON_FACTOR, KRON_FACTOR)
    w2_a = recipe.randn(out // KRON_FACTOR, recipe.rank)
    w2_b = recipe.randn(recipe.rank, inner // KRON_FACTOR)
    gain = recipe.gain(layer.weight, torch.kron(w1, w2_a @ w2_b))
    return {
        "lokr_w1": w1 * gain,
        "lokr_w2_a": w2_a,
        "lokr_w2_b": w2_b,
        "alpha": torch.tensor(float(recipe.rank)),
    }


def full(layer: Layer, recipe: Recipe) -> dict[str, Tensor]:
    """W + diff, and bias + diff_b where there is a bias."""
    diff = recipe.randn(*layer.weight.shape)
    tensors = {"diff": diff * recipe.gain(layer.weight, diff)}
    if layer.bias is not None:
        diff_b = recipe.randn(*layer.bias.shape)
        tensors["diff_b"] = diff_b * recipe.gain(layer.bias, diff_b)
    return tensors


def ia3(layer: Layer, recipe: Recipe) -> dict[str, Tensor]:
    """W * (1 + w): over the outputs of keys and values, over the inputs of the last feed-forward layer."""
    on_input = layer.name.endswith(IA3_ON_INPUT)
    if not on_input and not layer.name.endswith(IA3_ON_OUTPUT):
        return {}
    width = layer.weight.shape[1] if on_input else layer.weight.shape[0]
    return {"weight": recipe.share * recipe.randn(width), "on_input": torch.tensor(on_input)}


def glora(layer: Layer, recipe: Recipe) -> dict[str, Tensor]:
    """W + b2 @ b1 + W @ a2 @ a1; the webui has it for linear layers only."""
    if layer.weight.ndim != 2:
        return {}
    out, inner = layer.weight.shape
    a1, b1 = recipe.randn(recipe.rank, inner), recipe.randn(recipe.rank, inner)
    a2, b2 = recipe.randn(inner, recipe.rank), recipe.randn(out, recipe.rank)
    half = math.sqrt(0.5)  # each of the two terms has half of the square of the norm
    gain_a = math.sqrt(half * recipe.gain(layer.weight, layer.weight @ a2 @ a1))
    gain_b = math.sqrt(half * recipe.gain(layer.weight, b2 @ b1))
    return {
        "a1.weight": a1 * gain_a,
        "a2.weight": a2 * gain_a,
        "b1.weight": b1 * gain_b,
        "b2.weight": b2 * gain_b,
        "alpha": torch.tensor(float(recipe.rank)),
    }


def oft(layer: Layer, recipe: Recipe) -> dict[str, Tensor]:
    """Blocks of output rows turned by a rotation, the Cayley transform of B - B^T."""
    size = layer.weight.shape[0] // OFT_BLOCKS
    share = recipe.share / math.sqrt(8 * size)  # a small rotation is near 1 + 2 (B - B^T)
    return {"oft_blocks": share * recipe.randn(OFT_BLOCKS, size, size)}


def norm(layer: Layer, recipe: Recipe) -> dict[str, Tensor]:
    """Differences of weight and bias of a norm layer."""
    w_norm, b_norm = recipe.randn(layer.weight.numel()), recipe.randn(layer.weight.numel())
    return {
        "w_norm": w_norm * recipe.gain(layer.weight, w_norm),
        "b_norm": b_norm * recipe.gain(layer.weight, b_norm),
    }


def misshapen(layer: Layer, recipe: Recipe) -> dict[str, Tensor]:
    """LoRA that fits no layer whose output is its input: one row too many there."""
    tensors = lora(layer, recipe)
    out, width = layer.weight.shape[:2]
    if out == width:
        up = tensors["lora_up.weight"]
        tensors["lora_up.weight"] = torch.cat([up, up[:1]])
    return tensors


KINDS: dict[str, Callable[[Layer, Recipe], dict[str, Tensor]]] = {
    "lora": lora,
    "dora": dora,
    "loha": loha,
    "lokr": lokr,
    "full": full,
    "ia3": ia3,
    "glora": glora,
    "oft": oft,
    "norm": norm,
    "misshapen": misshapen,
}


def make_network(
    state_dict: dict[str, Tensor],
    kind: str,
    *,
    rank: int,
    seed: int,
    resnets: bool = False,
    share: float = 0.35,
) -> dict[str, Tensor]:
    """State dict of a random network of ``kind`` for the checkpoint ``state_dict``.

    Plain LoRAs are stored in half precision, as files in the wild are. The other kinds are stored in float32:
    the webui multiplies their factors as stored, and torch 2.1 has no half precision matrix product on CPU.
    """
    recipe = Recipe(rank, share, torch.Generator().manual_seed(seed))
    tensors = {}
    for layer in layers(state_dict, resnets):
        if (layer.weight.ndim == 1) != (kind == "norm"):
            continue
        for part, value in KINDS[kind](layer, recipe).items():
            tensors[f"{layer.name}.{part}"] = (value.half() if kind == "lora" else value).contiguous()
    return tensors
