"""The references equal torch's own modules and functions, under each dtype rule that a caller may have."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_accel.kernels import (
    bias_residual,
    geglu,
    group_norm,
    group_norm_joined,
    layer_norm,
    linear_geglu,
    lora_fuse,
)
from lib_accel.kernels.group_norm import Norm
from lib_accel.kernels.lora_fuse import Layer, Pair
from lib_accel.lora.accumulate import write_sum
from lib_accel.lora.terms import Factors

HALF = torch.float16


@pytest.fixture
def module() -> nn.GroupNorm:
    module = nn.GroupNorm(4, 12, eps=1e-6)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    return module


@torch.no_grad()
def test_group_norm_is_that_of_torch(module: nn.GroupNorm) -> None:
    x = torch.randn(2, 12, 5, 7)
    ours = group_norm.reference(x, module.weight, module.bias, Norm(4, 1e-6, torch.float32))
    assert torch.equal(ours, module(x))


@torch.no_grad()
def test_group_norm_is_that_of_a_model_in_half(module: nn.GroupNorm) -> None:
    x = torch.randn(2, 12, 5, 7, dtype=HALF)
    module = module.half()
    ours = group_norm.reference(x, module.weight, module.bias, Norm(4, 1e-6, HALF, silu=True))
    # Where torch's float32 result is another by a bit, the rounded one is too.
    assert (ours != F.silu(module(x))).float().mean() < 0.01


@torch.no_grad()
@pytest.mark.parametrize("out_dtype", [None, torch.float32], ids=str)
def test_group_norm_is_that_of_a_layer_that_casts_back_before_silu(
    module: nn.GroupNorm, out_dtype: torch.dtype | None
) -> None:
    x, norm = torch.randn(2, 12, 5, 7, dtype=HALF), Norm(4, 1e-6, HALF, silu=True, out_dtype=out_dtype)
    ours = group_norm.reference(x, module.weight, module.bias, norm)
    assert ours.dtype is (out_dtype or HALF)
    assert torch.equal(ours.to(HALF), F.silu(module(x.float()).to(HALF)))
    assert torch.equal(ours, ours.to(HALF).to(ours.dtype))


@torch.no_grad()
def test_group_norm_is_that_of_autocast_before_a_convolution(module: nn.GroupNorm) -> None:
    x = torch.randn(2, 12, 5, 7, dtype=HALF)
    norm = Norm(4, 1e-6, torch.float32, silu=True, out_dtype=HALF)
    ours = group_norm.reference(x, module.weight, module.bias, norm)
    assert torch.equal(ours, F.silu(module(x.float())).to(HALF))


@torch.no_grad()
@pytest.mark.parametrize("keep", [True, False])
def test_group_norm_of_two_images_is_that_of_their_union(module: nn.GroupNorm, keep: bool) -> None:
    left, right = torch.randn(2, 7, 3, 4), torch.randn(2, 5, 3, 4)
    union, norm = torch.cat([left, right], dim=1), Norm(4, 1e-6, torch.float32)
    ours, kept = group_norm_joined.reference(left, right, module.weight, module.bias, norm, keep=keep)
    assert torch.equal(ours, module(union))
    assert kept is None if not keep else torch.equal(kept, union)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("source", [torch.float32, HALF], ids=str)
def test_layer_norm_is_that_of_torch(source: torch.dtype, dtype: torch.dtype) -> None:
    module = nn.LayerNorm(20, eps=1e-6)
    nn.init.normal_(module.weight)
    x = torch.randn(2, 3, 20, dtype=source)
    ours = layer_norm.reference(x, module.weight, module.bias, 1e-6, dtype)
    assert torch.equal(ours, module(x.float()).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, HALF], ids=str)
def test_geglu_is_values_times_gelu_of_gates(dtype: torch.dtype) -> None:
    value, gate = torch.randn(2, 3, 5, dtype=dtype), torch.randn(2, 3, 5, dtype=dtype)
    ours = geglu.reference(torch.cat([value, gate], dim=-1))
    # GELUs of one value may differ in their last bit: not all elements go through the same vectors.
    assert is_near(ours, value * F.gelu(gate), 1e-6 if dtype is torch.float32 else 2.0**-8)
    # Exact, not by tanh: these differ by up to 5e-4.
    assert torch.allclose(geglu.reference(torch.tensor([1.0, -2.0])), torch.tensor([-0.0455003]), atol=1e-6)


@torch.no_grad()
def test_a_shift_is_the_bias_of_the_convolution_and_the_embedding(module: nn.GroupNorm) -> None:
    convolution, x, embedding = nn.Conv2d(5, 12, 3), torch.randn(2, 5, 6, 7), torch.randn(2, 12)
    shift, norm = embedding + convolution.bias, Norm(4, 1e-6, torch.float32, silu=True)
    bare = F.conv2d(x, convolution.weight)
    ours = group_norm.reference(bare, module.weight, module.bias, norm, shift)
    theirs = F.silu(module(convolution(x) + embedding[:, :, None, None]))
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_bias_and_residual_are_those_of_a_convolution_and_of_a_linear_layer() -> None:
    convolution, linear = nn.Conv2d(5, 4, 3), nn.Linear(5, 4)
    x, tokens = torch.randn(2, 5, 6, 7), torch.randn(2, 9, 5)
    image, rest = torch.randn(2, 4, 4, 5), torch.randn(2, 9, 4)
    ours = bias_residual.reference(F.conv2d(x, convolution.weight), convolution.bias, image)
    assert torch.allclose(ours, convolution(x) + image, rtol=1e-4, atol=1e-5)
    ours = bias_residual.reference(F.linear(tokens, linear.weight), linear.bias, rest)
    assert torch.allclose(ours, linear(tokens) + rest, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
def test_gated_linear_layer_is_the_layer_and_its_gate(has_bias: bool, dtype: torch.dtype) -> None:
    linear, x = nn.Linear(6, 10, bias=has_bias).to(dtype), torch.randn(2, 3, 6, dtype=dtype)
    ours = linear_geglu.reference(x, linear.weight, linear.bias)
    assert torch.equal(ours, geglu.reference(linear(x)))


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
def test_lora_is_what_the_library_computes_today(dtype: torch.dtype) -> None:
    base = torch.randn(9, 4, 3, 3, dtype=dtype)
    pairs = [
        Pair(torch.randn(9, r, dtype=HALF), torch.randn(r, 36, dtype=HALF), s)
        for r, s in ((2, 1.0), (5, -0.3))
    ]
    ours, theirs = torch.zeros_like(base), torch.zeros_like(base)
    lora_fuse.reference([Layer(ours, base, pairs)])
    write_sum(theirs, base, [Factors(*pair) for pair in pairs])
    assert is_near(ours, theirs, 1e-6 if dtype is torch.float32 else 2.0**-10)


def is_near(ours: Tensor, theirs: Tensor, relative: float) -> bool:
    return torch.allclose(ours.float(), theirs.float(), rtol=relative, atol=1e-6)
