"""Weights of projections change their place in memory, and nothing else of them changes."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lib_accel import packing
from lib_accel.blocks.adjacent import are_adjacent
from lib_accel.graphs.trees import Whereabouts
from lib_accel.lora.formats import read_network
from lib_accel.lora.fusion import Fuser, Wanted
from lib_accel.packing import BY_OTHERS, Packed, pieces_of, why_not
from lib_accel.way import SHARED
from tests.fakes.attentions import CHANNELS, SOURCE, Attention, Attentions, bits, packed
from tests.fakes.lora import FakeDelta, FakeLora, FakeNetwork
from tests.lora.small import draw

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAID = 5  # weights of the model: query, key and value of one attention, key and value of the other


def is_packed(model: Attentions) -> bool:
    return are_adjacent(model.own.weights) and are_adjacent(model.other.weights[1:])


def lies_apart(model: nn.Module) -> bool:
    return all(weight.untyped_storage().nbytes() == weight.nbytes for weight in model.parameters())


def all_bits(model: nn.Module) -> list[Tensor]:
    return [bits(weight) for weight in model.parameters()]


def have(model: nn.Module, expected: list[Tensor]) -> bool:
    return all(map(torch.equal, all_bits(model), expected))


# There and back


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_weights_have_the_same_bits_and_take_the_same_memory(dtype: torch.dtype) -> None:
    model = Attentions(dtype)
    model.own.to_k.weight[0, 0] = float("nan")
    before = all_bits(model)
    packed(model)
    assert is_packed(model)
    assert have(model, before)
    memories = {
        weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes()
        for weight in model.parameters()
    }
    assert sum(memories.values()) == sum(weight.nbytes for weight in model.parameters())


@pytest.mark.parametrize("dtype", DTYPES)
def test_put_back_weights_have_the_same_bits_and_a_memory_each(dtype: torch.dtype) -> None:
    model = Attentions(dtype)
    before = all_bits(model)
    assert packed(model).put_back() == LAID
    assert lies_apart(model)
    assert have(model, before)


@pytest.mark.parametrize("needs_grad", [False, True])
def test_parameters_and_their_counts_of_writes_stay(needs_grad: bool) -> None:
    model = Attentions().requires_grad_(needs_grad)
    before = [(weight, weight._version) for weight in model.parameters()]
    each = packed(model)
    with torch.no_grad():
        model.own.to_q.weight.add_(1)  # its own count only, though others have the same memory
    each.put_back()
    now = [(weight, weight._version) for weight in model.parameters()]
    wrote = [weight is model.own.to_q.weight for weight in model.parameters()]
    assert all(a[0] is b[0] and a[1] == b[1] + w for a, b, w in zip(now, before, wrote, strict=True))
    assert {weight.requires_grad for weight in model.parameters()} == {needs_grad}


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("mode", [False, True])
def test_weights_stay_made_in_the_mode_they_were_made_in(made: bool, mode: bool) -> None:
    with torch.inference_mode(made):
        model = Attentions()
    with torch.inference_mode(mode):
        each = packed(model)
    assert is_packed(model)
    assert {weight.is_inference() for weight in model.parameters()} == {made}
    with torch.inference_mode(mode):
        assert each.put_back() == LAID
    assert {weight.is_inference() for weight in model.parameters()} == {made}


def test_packing_and_putting_back_again_do_nothing() -> None:
    model = Attentions()
    each = packed(model)
    assert each.lay(pieces_of(model)) == 0
    each.put_back()
    places = [weight.data_ptr() for weight in model.parameters()]
    assert each.put_back() == 0
    assert [weight.data_ptr() for weight in model.parameters()] == places


def test_the_count_of_an_attention_is_what_has_moved() -> None:
    model, each = Attentions(), Packed()
    assert each.lay(pieces_of(model)) == LAID
    assert each.ids() == {id(weight) for weight in (*model.own.weights, *model.other.weights[1:])}


# What may be packed


def test_query_key_and_value_belong_together_where_they_read_the_same() -> None:
    model = Attentions()
    assert pieces_of(model) == [model.own.weights, model.other.weights[1:]]


def test_attentions_of_the_same_weights_are_one() -> None:
    model = Attentions()
    model.again = Attention()
    for name in ("to_q", "to_k", "to_v"):
        getattr(model.again, name).weight = getattr(model.own, name).weight
    assert len(pieces_of(model)) == 2
    assert why_not(pieces_of(model)) is None


def _without_linear(model: Attentions) -> None:
    model.own.to_q = nn.Conv2d(CHANNELS, CHANNELS, 1)


def _without_values(model: Attentions) -> None:
    del model.own.to_v


def _with_bias(model: Attentions) -> None:
    model.own = Attention(bias=True)


def _with_one_bias(model: Attentions) -> None:
    model.own.to_v = nn.Linear(CHANNELS, CHANNELS)


def _of_two_sources(model: Attentions) -> None:
    model.own.to_v = nn.Linear(SOURCE, CHANNELS, bias=False)


def _of_an_odd_size(model: Attentions) -> None:
    model.own = Attention(3, 3)


@pytest.mark.parametrize(
    "change",
    [_without_linear, _without_values, _with_bias, _with_one_bias, _of_two_sources, _of_an_odd_size],
)
def test_other_attentions_are_left_out(change: Callable[[Attentions], None]) -> None:
    model = Attentions()
    change(model)
    assert pieces_of(model) == [model.other.weights[1:]]


def test_plain_weights_may_be_packed() -> None:
    assert why_not(pieces_of(Attentions())) is None


def test_what_we_packed_is_not_somebody_elses() -> None:
    model = Attentions()
    assert why_not(pieces_of(model), packed(model).ids()) is None


def test_what_somebody_else_packed_is_his() -> None:
    model = Attentions()
    packed(model)
    assert why_not(pieces_of(model)) == BY_OTHERS


def on_two_devices(model: Attentions) -> None:
    model.other.to("meta")


def in_eight_bits(model: Attentions) -> None:
    model.own.to_k.weight.data = model.own.to_k.weight.data.to(torch.float8_e4m3fn)


def in_two_dtypes(model: Attentions) -> None:
    model.own.to_k.half()


def in_two_modes(model: Attentions) -> None:
    with torch.inference_mode():
        model.own.to_k.weight = nn.Parameter(torch.ones(CHANNELS, CHANNELS), requires_grad=False)


def of_a_class(model: Attentions) -> None:
    class Odd(nn.Parameter):
        pass

    model.own.to_q._parameters["weight"] = Odd(model.own.to_q.weight.detach())


def as_views(model: Attentions) -> None:
    model.own.to_q.weight.data = torch.zeros(CHANNELS, 2 * CHANNELS)[:, ::2]


def in_a_larger_one(model: Attentions) -> None:
    model.own.to_q.weight.data = torch.zeros(CHANNELS + 1, CHANNELS)[1:]


def of_one_memory(model: Attentions) -> None:
    model.own.to_v.weight.data = model.own.to_k.weight.data


def tied(model: Attentions) -> None:
    model.own.to_v.weight = model.own.to_k.weight


def with_another(model: Attentions) -> None:
    model.twin = Attention()
    model.twin.to_q.weight = model.own.to_q.weight


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (on_two_devices, "its weights are on cpu and meta"),
        (in_eight_bits, "its weights are torch.float8_e4m3fn"),
        (in_two_dtypes, "its weights are of several dtypes, or of several modes of torch"),
        (in_two_modes, "its weights are of several dtypes, or of several modes of torch"),
        (of_a_class, "its weights are of a class of their own"),
        (as_views, "its weights are views"),
        (in_a_larger_one, SHARED),
        (of_one_memory, SHARED),
        (tied, SHARED),
        (with_another, SHARED),
    ],
)
def test_other_weights_stay_with_a_reason(change: Callable[[Attentions], None], reason: str) -> None:
    model = Attentions()
    change(model)
    assert why_not(pieces_of(model)) == reason


def test_a_weight_that_is_packed_in_another_model_stays_there() -> None:
    model, other = Attentions(), Attentions()
    other.own.to_q.weight = model.own.to_q.weight
    assert why_not(pieces_of(other), packed(model).ids()) == SHARED


# Who moves, replaces or drops them


def moved(model: Attentions) -> None:
    model.half().float()


def replaced(model: Attentions) -> None:
    for layer in (model.own.to_q, model.own.to_v):
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)


def laid_anew(model: Attentions) -> None:
    model.own.to_k.weight.data = model.own.to_k.weight.data.clone()


@pytest.mark.parametrize("change", [moved, replaced, laid_anew])
def test_who_moves_or_replaces_a_weight_ends_it_for_that_attention(
    change: Callable[[Attentions], None],
) -> None:
    model = Attentions()
    each = packed(model)
    change(model)
    assert not are_adjacent(model.own.weights)
    assert not each.ids() & set(map(id, model.own.weights))


def test_moves_to_where_weights_are_already_leave_them_packed() -> None:
    model = Attentions(torch.float16)
    packed(model)
    model.half().to("cpu").to(memory_format=torch.channels_last)
    assert is_packed(model)


def test_what_is_left_of_an_attention_gets_its_own_memory_back() -> None:
    model = Attentions()
    each, before = packed(model), all_bits(model)
    laid_anew(model)
    place = model.own.to_k.weight.data_ptr()
    assert each.mend() == 2
    assert model.own.to_k.weight.data_ptr() == place
    assert are_adjacent(model.other.weights[1:])
    assert have(model, before)
    assert why_not(pieces_of(model), each.ids()) is None


def test_putting_back_touches_nothing_that_others_laid() -> None:
    model = Attentions()
    each = packed(model)
    place = torch.zeros(2 * CHANNELS, CHANNELS)
    model.own.to_q.weight.data = place[:CHANNELS]
    assert each.put_back() == LAID - 1
    assert model.own.to_q.weight.data_ptr() == place.data_ptr()


def test_a_copy_of_a_packed_model_lies_apart() -> None:
    model = Attentions()
    packed(model)
    twin = copy.deepcopy(model)
    assert lies_apart(twin)
    assert is_packed(model)


def test_a_checkpoint_that_is_loaded_in_place_leaves_them_packed() -> None:
    model, other = Attentions(), Attentions()
    other.own.to_k.weight.add_(1)
    each = packed(model)
    model.load_state_dict(other.state_dict())
    assert is_packed(model)
    assert each.put_back() == LAID
    assert have(model, all_bits(other))


def test_the_state_of_a_packed_model_is_what_another_loads() -> None:
    model, other = Attentions(), Attentions()
    model.own.to_k.weight.add_(1)
    packed(model)
    other.load_state_dict(model.state_dict())
    assert have(other, all_bits(model))


def test_a_dead_model_is_not_held_nor_its_memory() -> None:
    model = Attentions()
    each = packed(model)
    memory, weight = packing._memory(model.own.to_q.weight), weakref.ref(model.own.to_q.weight)
    del model
    gc.collect()
    assert weight() is None
    assert memory.expired()
    assert (each.ids(), each.mend(), each.put_back()) == (set(), 0, 0)


# Memory that runs out


def test_what_was_packed_before_memory_ran_out_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, each, pack = Attentions(), Packed(), packing._pack

    def failing(piece: packing.Piece) -> packing._Pack:
        if len(piece) == 2:
            raise MemoryError
        return pack(piece)

    monkeypatch.setattr(packing, "_pack", failing)
    with pytest.raises(MemoryError):
        each.lay(pieces_of(model))
    assert each.put_back() == 3
    assert lies_apart(model)


def test_what_there_was_no_memory_for_is_put_back_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(weight: Tensor) -> None:
        raise MemoryError

    model = Attentions()
    each = packed(model)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_give_own", fail)
        assert each.put_back() == 0
    assert each.put_back() == LAID
    assert lies_apart(model)


# Networks and recordings, before and after


def lora() -> Wanted:
    shapes = {"own.to_q": CHANNELS, "own.to_v": CHANNELS, "other.to_k": SOURCE}
    tensors = {
        f"lora_unet_{name.replace('.', '_')}.lora_{role}.weight": draw(number, *shape)
        for name, width in shapes.items()
        for number, (role, shape) in enumerate((("down", (4, width)), ("up", (CHANNELS, 4))))
    }
    return Wanted(read_network(tensors), 1.0, 1.0)


def test_a_network_fused_into_packed_weights_gives_the_same_bits() -> None:
    model, other = Attentions(), Attentions()
    packed(model)
    for each in (model, other):
        assert Fuser({"unet": each}).fuse([lora()]).layers == 3
    assert is_packed(model)
    assert have(model, all_bits(other))


@pytest.mark.parametrize("is_back", [False, True])
def test_a_network_comes_out_of_weights_that_were_laid_since(is_back: bool) -> None:
    model = Attentions()
    fuser = Fuser({"unet": model})
    each = packed(model) if is_back else Packed()
    fuser.fuse([lora()])
    each.put_back() if is_back else each.lay(pieces_of(model))
    fuser.restore()
    assert is_packed(model) is not is_back
    assert have(model, all_bits(Attentions()))


def test_packing_is_no_write_that_a_fuser_would_complain_of() -> None:
    model, network = Attentions(), lora()
    fuser, each = Fuser({"unet": model}), packed(model)
    fuser.fuse([network])
    each.put_back()
    assert fuser.fuse([network]).layers == 0
    each.lay(pieces_of(model))
    assert fuser.fuse([network]).layers == 0


@pytest.mark.parametrize("packs_at", [0, 1])
@pytest.mark.parametrize("goes_back", [False, True])
def test_the_hosts_own_merge_and_its_undo_do_the_same(packs_at: int, goes_back: bool) -> None:
    model, extension = Attentions(), FakeLora()
    before, layer = all_bits(model), model.own.to_k
    layer.network_layer_name = "key"
    delta = FakeDelta(draw(1, CHANNELS, 2), draw(2, 2, CHANNELS), None)
    add = lambda: extension.loaded_networks.append(FakeNetwork("one", modules={"key": delta}))  # noqa: E731
    each = packed(model) if goes_back else Packed()
    for number, action in enumerate((add, extension.loaded_networks.clear)):
        action()
        if number == packs_at:
            each.put_back() if goes_back else each.lay(pieces_of(model))
        extension.network_apply_weights(layer)
        assert torch.equal(bits(layer.weight), before[1]) is bool(number)
    assert have(model, before)


def test_a_recording_does_not_take_packed_weights_for_those_it_knows() -> None:
    model = Attentions()
    known = Whereabouts(list(model.parameters()))
    each = packed(model)
    assert not known.are_of(list(model.parameters()))
    each.put_back()
    assert Whereabouts(list(model.parameters())).are_of(list(model.parameters()))
