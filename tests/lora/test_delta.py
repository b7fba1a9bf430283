"""The factors of each kind, against plain convolutions and products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lib_accel.lora.delta import for_inpainting, lora_factors, needs_inpainting, tucker_down
from lib_accel.lora.terms import Factors


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def product(factors: Factors) -> Tensor:
    return factors.strength * factors.up.float() @ factors.down.float()


def test_change_of_a_linear_layer_is_up_times_down() -> None:
    down, up, x = numbers(3, 7), numbers(5, 3), numbers(2, 7)
    factors = lora_factors(down, up, strength=0.5)
    assert close(F.linear(x, product(factors)), 0.5 * F.linear(F.linear(x, down), up))


def test_change_of_a_convolution_is_its_down_then_its_up() -> None:
    down, up, x = numbers(3, 7, 3, 3), numbers(5, 3, 1, 1), numbers(2, 7, 6, 6)
    factors = lora_factors(down, up, strength=-2.0)
    weight = product(factors).reshape(5, 7, 3, 3)
    assert close(F.conv2d(x, weight), -2.0 * F.conv2d(F.conv2d(x, down), up))


def test_mid_kernel_comes_between_down_and_up() -> None:
    down, mid, up, x = numbers(3, 7, 1, 1), numbers(3, 3, 3, 1), numbers(5, 3, 1, 1), numbers(2, 7, 6, 6)
    factors = lora_factors(tucker_down(mid, down), up, strength=1.0)
    weight = product(factors).reshape(5, 7, 3, 1)
    assert close(F.conv2d(x, weight), F.conv2d(F.conv2d(F.conv2d(x, down), mid), up))


def test_half_precision_factors_are_multiplied_in_float32() -> None:
    down, up = numbers(64, 7).half(), numbers(5, 64).half()
    factors = lora_factors(down, up, strength=0.3)
    assert close(product(factors), 0.3 * (up.double() @ down.double()).float())


def test_inpainting_reads_the_latents_from_its_first_four_channels() -> None:
    down, up, x = numbers(3, 4, 3, 3), numbers(5, 3, 1, 1), numbers(2, 9, 6, 6)
    padded = for_inpainting(down)
    assert torch.equal(F.conv2d(F.conv2d(x, padded), up), F.conv2d(F.conv2d(x[:, :4], down), up))


def test_only_latents_for_nine_channels_are_padded() -> None:
    assert needs_inpainting((5, 4, 3, 3), (5, 9, 3, 3))
    assert not needs_inpainting((5, 4, 3, 3), (5, 8, 3, 3))
    assert not needs_inpainting((5, 3, 3, 3), (5, 9, 3, 3))
    assert not needs_inpainting((6, 4, 3, 3), (5, 9, 3, 3))
