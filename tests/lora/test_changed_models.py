"""Models that others move, change or wrap between two fusions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from lib_accel.lora import targets
from lib_accel.lora.formats import LoraError
from tests.lora import models as make
from tests.lora import networks as spell
from tests.lora.parts import Parts, Q
from tests.lora.test_against_peft import pipeline


def move(model: nn.Module) -> None:
    """Gives all weights new storage, as `.to(device)` does."""
    model._apply(lambda tensor: tensor.clone())


def replace_parameter(parts: Parts) -> None:
    layer, old = parts.unet.get_submodule(Q), parts.weight
    layer.weight = nn.Parameter(torch.ones_like(old), requires_grad=False)
    while layer.weight._version < old._version:  # torch counts the writes to each from its birth
        layer.weight.add_(1)


def load_weights(parts: Parts) -> None:
    parts.unet.load_state_dict({name: torch.ones_like(w) for name, w in parts.unet.state_dict().items()})


def write_weight(parts: Parts) -> None:
    parts.weight.data = parts.weight.data  # leaves the count of writes alone
    parts.weight.mul_(2)


def change_dtype(parts: Parts) -> None:
    parts.unet.to(torch.bfloat16)


CHANGES = [replace_parameter, load_weights, write_weight, change_dtype]


def test_moves_between_fusions_are_no_change(parts: Parts) -> None:
    before, network = parts.bits(), parts.network(1)
    parts.fuse(network)
    fused = parts.bits()
    move(parts.unet)
    parts.fuse(parts.network(2))
    move(parts.unet)
    parts.fuse(network)
    assert parts.have(fused)
    move(parts.unet)
    parts.fuse()
    assert parts.have(before)


@pytest.mark.parametrize("change", CHANGES)
def test_unfused_weights_that_others_changed_are_the_new_base(
    parts: Parts, change: Callable[[Parts], None]
) -> None:
    network = parts.network()
    parts.fuse(network)
    parts.fuse()
    change(parts)
    changed = parts.bits()
    parts.fuse(network)
    assert not parts.have(changed)
    parts.fuse()
    assert parts.have(changed)


def test_unfused_weights_written_past_the_count_are_the_new_base(parts: Parts) -> None:
    """As peft's merge and averages of weights write them: nobody is told, and nothing is fused meanwhile."""
    parts.fuse(parts.network(1))
    parts.fuse()
    parts.weight.data += 1
    changed = parts.bits()
    parts.fuse(parts.network(2))
    parts.fuse()
    assert parts.have(changed)


@pytest.mark.parametrize("change", CHANGES)
def test_fused_weights_that_others_changed_stop_the_next_set(
    parts: Parts, change: Callable[[Parts], None]
) -> None:
    parts.fuse(parts.network(1))
    change(parts)
    changed = parts.bits()
    with pytest.raises(LoraError, match=r"replaced or written to by others .* set no networks"):
        parts.fuse(parts.network(2))
    assert parts.have(changed)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way_out", [Parts.fuse, lambda parts: parts.fuser.restore()])
def test_empty_set_leaves_them_says_so_and_goes_on(
    parts: Parts, change: Callable[[Parts], None], way_out: Callable[[Parts], Any]
) -> None:
    before, network = parts.bits(), parts.network()
    parts.fuse(network)
    change(parts)
    changed = parts.weight.clone()
    with pytest.raises(LoraError, match="left as they are"):
        way_out(parts)
    assert torch.equal(parts.weight, changed)
    assert make.same_bits(before[-len(make.bits(parts.encoder)) :], parts.encoder)
    parts.fuse(network)
    parts.fuse()
    assert torch.equal(parts.weight, changed)


def test_restore_drops_the_bases_of_the_others_too(parts: Parts) -> None:
    parts.fuse(parts.network())
    replace_parameter(parts)
    with pytest.raises(LoraError, match="left as they are"):
        parts.fuser.restore()
    assert parts.fuser.base_bytes == 0


def test_places_are_looked_for_again_only_when_layers_change(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, right = [], targets._locate
    monkeypatch.setattr(targets, "_locate", lambda *args: looked.append(None) or right(*args))
    network = parts.network(pattern=".*to_v")
    for scale in (1.0, 0.5, 0.0, 1.0):
        parts.fuse(network, scale=scale)
        move(parts.unet)
        load_nothing(parts)
    assert len(looked) == 2  # and once for the scale 0, with which it changes nothing
    parts.unet.mid_block = make.sd1_unet().mid_block
    with pytest.raises(LoraError, match=r"first unet\.mid_block.* replaced"):
        parts.fuse(network)
    assert len(looked) == 3


def load_nothing(parts: Parts) -> None:
    parts.unet.load_state_dict({}, strict=False)


def test_layer_that_is_gone_stops_the_next_set(parts: Parts) -> None:
    parts.fuse(parts.network())
    parts.unet.mid_block.attentions = nn.ModuleList()
    with pytest.raises(LoraError, match=r"first unet\.mid_block\.attentions.* replaced"):
        parts.fuse(parts.network(pattern=".*to_v"))


def with_adapter(parts: Parts) -> StableDiffusionPipeline:
    """The parts in a pipeline, with an adapter of peft in the UNet's queries."""
    pipe = pipeline({**parts.models})
    pipe.load_lora_weights(spell.network({"unet": parts.unet}, spell.peft, pattern=".*to_q"))
    return pipe


def test_layer_with_an_adapter_of_peft_is_named_with_the_remedy(parts: Parts) -> None:
    network = parts.network()
    pipe = with_adapter(parts)
    with pytest.raises(LoraError, match=r"unet\.down.*to_q carries an adapter of peft.*unload_lora_weights"):
        parts.fuse(network)
    pipe.unload_lora_weights()
    assert parts.fuse(network).layers == len(network.layers)


def test_networks_come_out_from_under_adapters_of_peft(parts: Parts) -> None:
    before = parts.bits()
    parts.fuse(parts.network())
    pipe = with_adapter(parts)
    parts.fuser.restore()
    pipe.unload_lora_weights()
    assert parts.have(before)


def test_layers_that_peft_does_not_touch_are_fused_beside_it(parts: Parts) -> None:
    network = parts.network(pattern=".*to_v")
    with_adapter(parts)
    assert parts.fuse(network).layers == len(network.layers)


def test_projections_that_diffusers_fused_are_refused_with_the_remedy(parts: Parts) -> None:
    network = parts.network()
    parts.unet.fuse_qkv_projections()
    with pytest.raises(LoraError, match=r"to_\w is not used .*unfuse_qkv_projections"):
        parts.fuse(network)
    parts.unet.unfuse_qkv_projections()
    assert parts.fuse(network).layers == len(network.layers)


def test_offloaded_weights_are_refused_with_the_remedy(parts: Parts) -> None:
    network = parts.network()
    parts.unet.to("meta")
    with pytest.raises(LoraError, match=r"unet\..* is on the meta device.*enable_model_cpu_offload"):
        parts.fuse(network)


def test_quantized_weights_are_refused_with_the_remedy(parts: Parts) -> None:
    network = parts.network()
    layer = parts.unet.get_submodule(Q)
    layer.weight = nn.Parameter(torch.ones(16, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(LoraError, match=r"to_q is no plain floating-point.*int8.*without quantization"):
        parts.fuse(network)


def test_weights_of_another_class_are_refused(parts: Parts) -> None:
    class Packed(nn.Parameter):
        """As quantizers have them."""

    network = parts.network()
    layer = parts.unet.get_submodule(Q)
    layer.weight = Packed(torch.ones(16, 16), requires_grad=False)
    with pytest.raises(LoraError, match=r"to_q is no plain floating-point Parameter \(it is a Packed"):
        parts.fuse(network)


def test_computed_weights_are_refused(parts: Parts) -> None:
    network = parts.network()
    nn.utils.parametrizations.weight_norm(parts.unet.get_submodule(Q))
    with pytest.raises(LoraError, match=r"to_q is no plain floating-point Parameter \(it is none"):
        parts.fuse(network)
