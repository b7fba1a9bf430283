"""What a Fuser writes into live weights, and what it leaves alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.lora.formats import Network, read_network
from lib_accel.lora.fusion import Fuser, Wanted
from tests.lora import models as make
from tests.lora import networks as spell
from tests.lora.parts import Parts, Q, writes


def change(network: Network, path: str = Q) -> Tensor:
    """What a network adds to a linear layer of the UNet, in float64."""
    layer = next(layer for key, layer in network.layers.items() if key.path == path.replace(".", "_"))
    return layer.strength * layer.tensors["up"].double() @ layer.tensors["down"].double()


def test_fused_weight_is_the_base_and_the_scaled_changes(parts: Parts) -> None:
    base, one, two = parts.weight.clone(), parts.network(1), parts.network(2, alpha=1.0)
    parts.fuser.fuse([Wanted(one, 1.0, 0.5), Wanted(two, 1.0, -2.0)])
    exact = base.double() + 0.5 * change(one) - 2.0 * change(two)
    assert torch.allclose(parts.weight.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_five_networks_are_rounded_once(parts: Parts, dtype: torch.dtype) -> None:
    parts.unet.to(dtype)
    base, networks = parts.weight.double(), [parts.network(seed) for seed in range(5)]
    parts.fuse(*networks)
    exact = base + sum(change(network) for network in networks)
    # Rounding after each network would miss the nearest number for a third of the weight.
    assert (parts.weight == exact.to(dtype)).float().mean() > 0.99


def test_float64_weight_stays_as_precise_as_it_was(parts: Parts) -> None:
    parts.unet.double()
    with torch.no_grad():
        parts.weight.add_(1e-12)
    base, network = parts.weight.clone(), parts.network()
    parts.fuse(network, scale=1e-12)
    assert (parts.weight - base - 1e-12 * change(network)).abs().max() < 1e-15


def test_mid_kernel_is_fused(parts: Parts) -> None:
    path, numbers = "down_blocks.0.resnets.0.conv1", torch.Generator().manual_seed(0)
    shapes = {"down": (2, 16, 1, 1), "up": (16, 2, 1, 1), "mid": (2, 2, 3, 3)}
    spelled = spell.kohya("unet", path)
    tensors = {role: torch.randn(shape, generator=numbers) for role, shape in shapes.items()}
    weight = parts.unet.get_submodule(path).weight
    expected = weight + torch.einsum(
        "op,pqhw,qi->oihw", tensors["up"][..., 0, 0], tensors["mid"], tensors["down"][..., 0, 0]
    )
    parts.fuse(read_network({spelled[role]: tensor for role, tensor in tensors.items()}))
    assert torch.allclose(weight, expected, atol=1e-5)


def test_latent_network_leaves_the_mask_channels_of_an_inpainting_unet_alone() -> None:
    unet = make.inpaint_unet()
    base, weight = unet.conv_in.weight.clone(), unet.conv_in.weight
    network = read_network(spell.network({"unet": make.sd1_unet()}, pattern="conv_in"))
    (layer,) = network.layers.values()
    Fuser({"unet": unet}).fuse([Wanted(network, 1.0, 1.0)])
    added = (layer.tensors["up"].flatten(1) @ layer.tensors["down"].flatten(1)).reshape(16, 4, 3, 3)
    assert torch.allclose(weight[:, :4], base[:, :4] + added, atol=1e-6)
    assert torch.equal(weight[:, 4:], base[:, 4:])


def test_parameters_and_their_storage_stay(parts: Parts) -> None:
    before = [(weight, weight.data_ptr()) for weight in parts.unet.parameters()]
    parts.fuse(parts.network())
    parts.fuser.restore()
    now = [(weight, weight.data_ptr()) for weight in parts.unet.parameters()]
    assert all(a[0] is b[0] and a[1] == b[1] for a, b in zip(before, now, strict=True))


def test_memory_format_of_a_convolution_stays(parts: Parts) -> None:
    parts.unet.to(memory_format=torch.channels_last)
    before, strides = parts.bits(), parts.unet.conv_in.weight.stride()
    network = parts.network(pattern=spell.CONVOLUTIONS)
    parts.fuse(network)
    other = Parts()
    other.fuse(network)
    assert parts.have(other.bits())
    parts.fuse()
    assert parts.have(before)
    assert parts.unet.conv_in.weight.stride() == strides


def test_result_says_what_was_done(parts: Parts) -> None:
    known = spell.network(parts.models)
    stray = {f"lora_unet_stray.lora_{role}.weight": torch.ones(1, 1) for role in ("down", "up")}
    fused = parts.fuse(read_network(known, "known"), read_network(known | stray, "strange"))
    assert fused.networks == ("known", "strange")
    assert fused.layers == len(known) // 2
    assert fused.unknown == {"strange": ("lora_unet_stray",)}
    assert 0 < fused.seconds < 60


def test_same_set_again_writes_nothing(parts: Parts) -> None:
    network = parts.network()
    parts.fuse(network)
    before = writes(parts.unet)
    assert parts.fuse(network).layers == 0
    assert writes(parts.unet) == before


def test_same_tensors_read_again_write_nothing(parts: Parts) -> None:
    tensors = spell.network(parts.models)
    parts.fuse(read_network(tensors))
    assert parts.fuse(read_network(tensors)).layers == 0


def test_only_weights_whose_scale_changed_are_written(parts: Parts) -> None:
    network = parts.network()
    parts.fuser.fuse([Wanted(network, 1.0, 1.0)])
    before = writes(parts.unet)
    assert parts.fuser.fuse([Wanted(network, 0.5, 1.0)]).layers == 12
    assert writes(parts.unet) == before


def test_only_weights_of_a_network_that_goes_are_written(parts: Parts) -> None:
    everywhere, queries = parts.network(1), parts.network(2, pattern=".*to_q")
    parts.fuse(everywhere, queries)
    assert parts.fuse(everywhere).layers == len(queries.layers)


def test_weights_that_no_network_has_are_never_written(parts: Parts) -> None:
    before = writes(parts.unet.conv_in) + writes(parts.unet.time_embedding)
    parts.fuse(parts.network())
    parts.fuser.restore()
    assert writes(parts.unet.conv_in) + writes(parts.unet.time_embedding) == before


@pytest.mark.parametrize(("te_scale", "unet_scale", "left"), [(0.0, 1.0, "encoder"), (1.0, 0.0, "unet")])
def test_zero_scale_leaves_a_part_alone(parts: Parts, te_scale: float, unet_scale: float, left: str) -> None:
    model = getattr(parts, left)
    before = writes(model)
    assert parts.fuser.fuse([Wanted(parts.network(), te_scale, unet_scale)]).layers > 0
    assert writes(model) == before


def test_both_text_encoders_follow_the_scale_for_text() -> None:
    models = {"text_encoder": make.text_encoder(), "text_encoder_2": make.second_text_encoder()}
    network = read_network(spell.network(models, spell.kohya_xl))
    assert Fuser(models).fuse([Wanted(network, 0.0, 1.0)]).layers == 0
    assert Fuser(models).fuse([Wanted(network, 1.0, 0.0)]).layers == len(network.layers)


def test_negative_scale_takes_away_what_the_positive_adds(parts: Parts) -> None:
    base, network = parts.weight.clone(), parts.network()
    parts.fuse(network, scale=1.5)
    added = parts.weight - base
    parts.fuse(network, scale=-1.5)
    assert torch.allclose(base - parts.weight, added, atol=1e-6)


def test_network_named_twice_counts_twice(parts: Parts) -> None:
    network = parts.network()
    parts.fuse(network, network)
    twice = parts.bits()
    parts.fuse(network, scale=2.0)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(twice, parts.bits(), strict=True))


def test_order_of_networks_matters_to_rounding_only(parts: Parts) -> None:
    networks = [parts.network(seed) for seed in range(3)]
    parts.fuse(*networks)
    forwards = parts.bits()
    parts.fuse(*reversed(networks))
    assert max(float((a - b).abs().max()) for a, b in zip(forwards, parts.bits(), strict=True)) < 1e-6


def test_result_does_not_depend_on_what_was_fused_before(parts: Parts) -> None:
    network = parts.network(1)
    parts.fuse(network)
    alone = parts.bits()
    parts.fuse(parts.network(2), parts.network(3))
    parts.fuse(network)
    assert parts.have(alone)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
def test_writing_works_in_any_gradient_mode(parts: Parts, mode: Callable[[], Any]) -> None:
    parts.unet.requires_grad_(True)
    before, network = parts.bits(), parts.network()
    with mode():
        parts.fuse(network)
    assert not parts.have(before)
    assert parts.weight.is_leaf
    parts.fuse()
    assert parts.have(before)


def test_network_that_is_being_trained_leaves_no_graph(parts: Parts) -> None:
    tensors = {name: tensor.requires_grad_() for name, tensor in spell.network(parts.models).items()}
    parts.unet.requires_grad_(True)
    parts.fuse(read_network(tensors))
    assert parts.weight.is_leaf


def test_models_made_in_inference_mode_are_written_outside_it() -> None:
    with torch.inference_mode():
        parts = Parts()
    before = parts.bits()
    parts.fuse(parts.network())
    assert not parts.have(before)
    parts.fuse()
    assert parts.have(before)


def test_autocast_does_not_change_the_bits(parts: Parts) -> None:
    numbers = torch.Generator().manual_seed(0)
    conv = spell.kohya("unet", "conv_out")
    tensors = {
        conv["down"]: torch.randn(2, 16, 1, 1, generator=numbers),
        conv["mid"]: torch.randn(2, 2, 3, 3, generator=numbers),
        conv["up"]: torch.randn(4, 2, 1, 1, generator=numbers),
    }
    network = read_network(tensors | spell.network(parts.models))
    parts.fuse(network)
    outside = parts.bits()
    parts.fuser.restore()
    with torch.autocast("cpu", torch.bfloat16):
        parts.fuse(network)
    assert parts.have(outside)
