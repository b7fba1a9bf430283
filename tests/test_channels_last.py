"""Convolution weights change their place in memory, and nothing else of them changes."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

from lib_accel import channels_last
from lib_accel.channels_last import (
    CHANNELS_LAST,
    OF_THE_HOST,
    Turned,
    convolution_weights,
    is_first,
    is_last,
    why_not,
)
from lib_accel.graphs.trees import Whereabouts
from lib_accel.lora.formats import read_network
from lib_accel.lora.fusion import Fuser, Wanted
from tests.fakes.lora import FakeDelta, FakeLora, FakeNetwork
from tests.lora.small import Small, draw


class Convolutions(nn.Module):
    """Two of 3x3 and one of 1x1, which lies both ways."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 6, 3)
        self.point = nn.Conv2d(6, 4, 1)
        self.to(dtype).requires_grad_(False)


def weights_of(model: nn.Module) -> list[nn.Parameter]:
    return convolution_weights(model)


def pieces_of(model: nn.Module) -> list[tuple[nn.Parameter, ...]]:
    return CHANNELS_LAST.find(model)


def turned(model: nn.Module) -> Turned:
    result = Turned()
    result.lay(pieces_of(model))
    return result


def bits(weight: Tensor) -> Tensor:
    return weight.detach().clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_turned_weights_have_the_same_bits(dtype: torch.dtype) -> None:
    model = Convolutions(dtype)
    model.first.weight[0, 0, 0, 0] = float("nan")
    before = [bits(weight) for weight in model.parameters()]
    turned(model)
    assert is_last(model.first.weight)
    assert is_last(model.second.weight)
    assert all(torch.equal(bits(w), b) for w, b in zip(model.parameters(), before, strict=True))


def test_put_back_weights_have_the_same_bits_and_strides() -> None:
    model = Convolutions()
    before = [(weight.stride(), weight.clone()) for weight in model.parameters()]
    assert turned(model).put_back() == 2
    now = [(weight.stride(), weight) for weight in model.parameters()]
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(now, before, strict=True))


@pytest.mark.parametrize("needs_grad", [False, True])
def test_parameters_and_their_counts_of_writes_stay(needs_grad: bool) -> None:
    model = Convolutions().requires_grad_(needs_grad)
    before = [(weight, weight._version) for weight in model.parameters()]
    each = turned(model)
    each.put_back()
    each.lay(pieces_of(model))
    now = [(weight, weight._version) for weight in model.parameters()]
    assert all(a[0] is b[0] and a[1] == b[1] for a, b in zip(now, before, strict=True))
    assert {weight.requires_grad for weight in model.parameters()} == {needs_grad}


def test_a_weight_made_in_inference_mode_stays_one() -> None:
    with torch.inference_mode():
        model = Convolutions()
    turned(model)
    assert is_last(model.first.weight)
    assert model.first.weight.is_inference()


def test_a_weight_made_outside_stays_so_if_turned_in_inference_mode() -> None:
    model = Convolutions()
    with torch.inference_mode():
        turned(model)
    assert not model.first.weight.is_inference()


def test_weights_that_lie_both_ways_keep_their_place() -> None:
    model = Convolutions()
    place = model.point.weight.data_ptr()
    turned(model)
    assert model.point.weight.data_ptr() == place
    assert not is_first(model.point.weight)
    assert not is_last(model.point.weight)


def test_a_shared_weight_is_turned_once() -> None:
    model = Convolutions()
    model.again = nn.Conv2d(4, 8, 3)
    model.again.weight = model.first.weight
    assert Turned().lay(pieces_of(model)) == 2


def test_putting_back_again_does_nothing() -> None:
    model = Convolutions()
    each = turned(model)
    each.put_back()
    places = [weight.data_ptr() for weight in model.parameters()]
    assert each.put_back() == 0
    assert [weight.data_ptr() for weight in model.parameters()] == places


def test_what_was_not_turned_is_not_put_back() -> None:
    model = Convolutions()
    model.second.to(memory_format=torch.channels_last)
    turned(model).put_back()
    assert is_first(model.first.weight)
    assert is_last(model.second.weight)


def test_a_weight_that_took_the_place_of_ours_is_left_alone() -> None:
    model = Convolutions()
    each = turned(model)
    model.first.weight = nn.Parameter(model.first.weight.detach().clone(), requires_grad=False)
    assert each.put_back() == 1
    assert is_last(model.first.weight)


def test_a_weight_that_others_laid_anew_is_left_alone() -> None:
    model = Convolutions()
    each = turned(model)
    model.first.weight.data = model.first.weight.data.contiguous()
    place = model.first.weight.data_ptr()
    assert each.put_back() == 1
    assert model.first.weight.data_ptr() == place


def test_a_dead_model_is_not_held() -> None:
    model = Convolutions()
    each = turned(model)
    del model
    gc.collect()
    assert each.put_back() == 0


def test_a_model_without_memory_is_left_alone() -> None:
    model = Convolutions()
    each = turned(model)
    model.to("meta")
    assert each.put_back() == 0


def test_a_move_to_another_dtype_does_not_hinder_the_way_back() -> None:
    model = Convolutions()
    each = turned(model)
    model.half()
    assert each.put_back() == 2
    assert is_first(model.first.weight)


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Memory runs out at that weight, counted from zero."""
    calls, lay = [], channels_last._lay

    def failing(*args: object) -> None:
        calls.append(args)
        if len(calls) == number + 1:
            raise MemoryError
        lay(*args)

    monkeypatch.setattr(channels_last, "_lay", failing)


def test_what_was_turned_before_memory_ran_out_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, each = Convolutions(), Turned()
    fail_at(monkeypatch, 1)
    with pytest.raises(MemoryError):
        each.lay(pieces_of(model))
    assert each.put_back() == 1
    assert is_first(model.first.weight)


def test_what_there_was_no_memory_for_is_put_back_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Convolutions()
    each = turned(model)
    fail_at(monkeypatch, 0)
    assert (each.put_back(), each.put_back()) == (1, 1)
    assert is_first(model.first.weight)
    assert is_first(model.second.weight)


# Who may be turned


def test_plain_weights_may_be_turned() -> None:
    assert why_not(weights_of(Convolutions())) is None


def on_two_devices(model: Convolutions) -> None:
    model.second.to("meta")


def in_eight_bits(model: Convolutions) -> None:
    model.first.weight.data = model.first.weight.data.to(torch.float8_e4m3fn)


def of_a_class(model: Convolutions) -> None:
    class Packed(nn.Parameter):
        pass

    model.first._parameters["weight"] = Packed(model.first.weight.detach())


def of_the_host(model: Convolutions) -> None:
    model.to(memory_format=torch.channels_last)


def as_views(model: Convolutions) -> None:
    model.first.weight.data = torch.zeros(8, 4, 3, 6)[..., ::2]


def in_a_larger_one(model: Convolutions) -> None:
    model.first.weight.data = torch.zeros(9, 4, 3, 3)[1:]


def of_one_memory(model: Convolutions) -> None:
    model.twin = nn.Conv2d(4, 8, 3)
    model.twin.weight = nn.Parameter(model.first.weight.detach())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (on_two_devices, "its weights are on cpu and meta"),
        (in_eight_bits, "its weights are torch.float8_e4m3fn"),
        (of_a_class, "its weights are of a class of their own"),
        (of_the_host, OF_THE_HOST),
        (as_views, "its weights are views"),
        (in_a_larger_one, "its weights share their memory"),
        (of_one_memory, "its weights share their memory"),
    ],
)
def test_other_weights_stay_with_a_reason(change, reason: str) -> None:
    model = Convolutions()
    change(model)
    assert why_not(weights_of(model)) == reason


def test_what_we_turned_is_not_the_hosts() -> None:
    model = Convolutions()
    assert why_not(weights_of(model), turned(model).ids()) is None


# Networks and recordings, before and after


def lora(model: Small) -> Wanted:
    tensors = {
        f"lora_unet_{name}.lora_{role}.weight": draw(number, *shape)
        for name, layer in (("conv", model.conv), ("linear", model.linear))
        for number, (role, shape) in enumerate(
            (
                ("down", (4, *layer.weight.shape[1:])),
                ("up", (len(layer.weight), 4, *(1,) * (layer.weight.dim() - 2))),
            )
        )
    }
    return Wanted(read_network(tensors), 1.0, 1.0)


def fused() -> tuple[Small, Fuser, list[Tensor]]:
    """A model with a network in it, who put it there, and the bits that it has then."""
    model = Small()
    fuser = Fuser({"unet": model})
    fuser.fuse([lora(model)])
    return model, fuser, [bits(weight) for weight in model.parameters()]


def have(model: nn.Module, expected: list[Tensor]) -> bool:
    return all(torch.equal(bits(w), b) for w, b in zip(model.parameters(), expected, strict=True))


def test_a_network_fused_into_turned_weights_gives_the_same_bits() -> None:
    model, expected = Small(), fused()[2]
    turned(model)
    Fuser({"unet": model}).fuse([lora(model)])
    assert is_last(model.conv.weight)
    assert have(model, expected)


def test_a_network_comes_out_of_weights_that_were_turned_since() -> None:
    model, fuser, _ = fused()
    turned(model)
    fuser.restore()
    assert is_last(model.conv.weight)
    assert have(model, [bits(weight) for weight in Small().parameters()])


def test_a_network_comes_out_of_weights_that_were_put_back_since() -> None:
    model = Small()
    fuser, each = Fuser({"unet": model}), turned(model)
    fuser.fuse([lora(model)])
    each.put_back()
    fuser.restore()
    assert is_first(model.conv.weight)
    assert have(model, [bits(weight) for weight in Small().parameters()])


def test_turning_is_no_write_that_a_fuser_would_complain_of() -> None:
    model, fuser, expected = fused()
    each = turned(model)
    assert fuser.fuse([lora(model)]).layers == 0 or have(model, expected)
    each.put_back()
    fuser.fuse([])
    assert have(model, [bits(weight) for weight in Small().parameters()])


def test_a_kept_base_is_still_pristine_after_turning() -> None:
    model, fuser, expected = fused()
    fuser.fuse([])
    before = fuser.base_bytes
    turned(model)
    fuser.fuse([lora(model)])
    assert fuser.base_bytes == before
    assert have(model, expected)


@pytest.mark.parametrize("turns_at", [0, 1])
def test_the_hosts_own_merge_and_its_undo_do_the_same(turns_at: int) -> None:
    model, extension = Convolutions(), FakeLora()
    before, layer = bits(model.first.weight), model.first
    layer.network_layer_name = "first"
    delta = FakeDelta(draw(1, 8, 2), draw(2, 2, 36), None)
    actions = [
        lambda: extension.loaded_networks.append(FakeNetwork("one", modules={"first": delta})),
        extension.loaded_networks.clear,
    ]
    for number, action in enumerate(actions):
        action()
        if number == turns_at:
            turned(model)
        extension.network_apply_weights(layer)
    assert is_last(layer.weight)
    assert torch.equal(bits(layer.weight), before)


def test_a_checkpoint_that_is_loaded_in_place_leaves_them_turned() -> None:
    model, other = Convolutions(), Convolutions()
    each = turned(model)
    model.load_state_dict(other.state_dict())
    assert each.put_back() == 2
    assert have(model, [bits(weight) for weight in other.parameters()])


def test_a_recording_does_not_take_turned_weights_for_those_it_knows() -> None:
    model = Convolutions()
    known = Whereabouts(weights_of(model))
    each = turned(model)
    assert not known.are_of(weights_of(model))
    each.put_back()
    assert Whereabouts(weights_of(model)).are_of(weights_of(model))
