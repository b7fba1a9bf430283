"""What blocks keep alive: no more than they need as a whole, and a fraction of it in pieces."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.bench.peaks import peak_bytes
from lib_accel.blocks import res
from lib_accel.blocks.convolution import ConvSpec
from lib_accel.blocks.operators import convolution_norm as room
from lib_accel.blocks.operators.convolution_norm import CONVOLUTION_NORM, run_handed
from lib_accel.blocks.operators.group_norm import GroupNormSpec, GroupNormUse
from lib_accel.blocks.operators.operator import Tuned, by_tile
from lib_accel.blocks.rules import Pieces, Rules
from lib_accel.blocks.sample import ConvWeights, upsample
from lib_accel.blocks.transformer import FeedForwardSpec, FeedForwardWeights, feed_forward
from lib_accel.calls import ModelCall
from lib_accel.layouts.slots import LiveWeights
from lib_accel.steps import choose
from tests.blocks.pieces import WHOLE, apart, drawn
from tests.blocks.test_pieces import image, residual
from tests.fakes.tuning import Taking
from tests.fakes.vae import chain, picture, tiny_decoder

SMALL = Pieces(0, 2**16)


def test_the_peak_is_that_of_what_is_alive_at_once() -> None:
    x = torch.ones(1000)
    assert (
        4000 <= peak_bytes(lambda: (x + 1).sum() + (x + 2).sum()) < 8000 <= peak_bytes(lambda: (x + 1, x + 2))
    )


# As a whole: the image between a norm and the next one


def given() -> tuple[list[Tensor], tuple[Any, ...]]:
    """What `run_handed` takes, the image in a list that nobody else has."""
    use = GroupNormUse(GroupNormSpec(2, 1e-5, True), True, None, None)
    others = (
        drawn(8, 4, 3, 3),
        drawn(8),
        drawn(2, 8),
        drawn(8),
        drawn(8, seed=1),
        ConvSpec(padding=(1, 1)),
        use,
        None,
    )
    return [drawn(2, 4, 5, 5)], others


class Kernel(Taking):
    """Takes what stands for our kernel, with one of its tiles."""

    def __init__(self) -> None:
        super().__init__()
        (self._implementation,) = by_tile("Triton", room._by_kernel, ["tile"])
        self._operator = CONVOLUTION_NORM.name


def by_reference(*args: Any, tile: str) -> Tensor:
    assert tile == "tile"
    return room.kernel.reference(*args)


WAYS: dict[str, Callable[[], Tuned | None]] = {
    "plain torch": lambda: None,
    "nothing chosen": Taking,
    "kernel": Kernel,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_convolved_image_is_free_when_its_convolution_is_normalised(
    monkeypatch: pytest.MonkeyPatch, way: Callable[[], Tuned | None]
) -> None:
    handed, others = given()
    given_image, kept = weakref.ref(handed[0]), []

    def looking(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **how: kept.append(given_image() is not None) or norm(*args, **how)

    monkeypatch.setattr(room.kernel, "launch", looking(by_reference))
    monkeypatch.setattr(room.group_norm, "plain", looking(room.group_norm.plain))
    run_handed(way(), handed, *others)
    assert (kept, handed) == ([False], [])


def test_a_residual_block_keeps_no_norm_beside_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, made, kept = res.group_norm, [], []

    def first(*args: Any, **how: Any) -> Tensor:
        result = norm(*args, **how)
        made.append(weakref.ref(result))
        return result

    plain = room.group_norm.plain
    monkeypatch.setattr(res, "group_norm", first)
    monkeypatch.setattr(
        room.group_norm, "plain", lambda *args: kept.append(made[0]() is not None) or plain(*args)
    )
    weights, spec = residual(torch.float32)
    res.res_block(image((1, 7, 5), torch.float32), None, weights, spec, Rules())
    assert kept == [False]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_an_image_that_is_handed_over_gives_what_the_operator_gives(
    monkeypatch: pytest.MonkeyPatch, way: Callable[[], Tuned | None]
) -> None:
    monkeypatch.setattr(room.kernel, "launch", by_reference)
    handed, others = given()
    right = CONVOLUTION_NORM.plain(handed[0], *others)
    assert apart(run_handed(way(), handed, *others), right) < 1e-6


def test_another_implementation_is_run_as_it_is() -> None:
    handed, others = given()
    assert run_handed(Taking(CONVOLUTION_NORM.name, lambda x, *others: x + 1), handed, *others).shape == (
        2,
        4,
        5,
        5,
    )


def test_a_kernel_that_fails_is_noted_and_plain_torch_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, tile: str) -> Tensor:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(room.kernel, "launch", fail)
    handed, others = given()
    right, taking = CONVOLUTION_NORM.plain(handed[0], *others), Kernel()
    assert apart(run_handed(taking, handed, *others), right) < 1e-6
    assert taking.failures == ["convolution, norm: no such kernel"]


@pytest.mark.parametrize(
    ("error", "is_capturing"), [(torch.cuda.OutOfMemoryError("full"), False), (RuntimeError("odd"), True)]
)
def test_lack_of_memory_and_what_fails_in_a_capture_come_out(
    monkeypatch: pytest.MonkeyPatch, error: Exception, is_capturing: bool
) -> None:
    def fail(*args: Any, tile: str) -> Tensor:
        raise error

    monkeypatch.setattr(room.kernel, "launch", fail)
    monkeypatch.setattr(room, "is_capturing", lambda device: is_capturing)
    handed, others = given()
    with pytest.raises(type(error)):
        run_handed(Kernel(), handed, *others)


def test_a_compiler_sees_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    handed, others = given()
    seen: list[str] = []
    monkeypatch.setattr(room, "is_compiling", lambda: True)
    monkeypatch.setattr(room, "run", lambda operator, *args: seen.append(operator.name))
    run_handed(None, handed, *others)
    assert seen == [CONVOLUTION_NORM.name]


# In pieces


def decoded(side: int) -> tuple[Callable[[], Tensor], Callable[[Pieces], Tensor]]:
    """A decoder of its own classes, and our blocks of it by a way to cut."""
    decoder, x = tiny_decoder(), picture(1, 4, (side, side))
    steps, slots = choose(chain(decoder))
    weights = LiveWeights(slots).read()

    def ours(cut: Pieces) -> Tensor:
        h = x
        for step in steps:
            h = step.run(h, None, None, ModelCall(Rules(pieces=cut), None, (), "cpu", None), weights)
        return h

    return lambda: decoder(x), ours


def test_a_decoder_holds_less_than_the_hosts_and_in_pieces_less_than_half_of_that() -> None:
    stock, ours = decoded(32)
    right, whole, cut = peak_bytes(stock), peak_bytes(lambda: ours(WHOLE)), peak_bytes(lambda: ours(SMALL))
    assert whole < right
    assert cut < right / 2
    assert apart(ours(SMALL), stock()) < 2e-6


def test_a_residual_block_holds_its_result_and_no_other_image() -> None:
    weights, spec = residual(torch.float32, out=64)
    x = image((1, 64, 64), torch.float32)
    assert peak_bytes(lambda: res.res_block(x, None, weights, spec, Rules(pieces=SMALL))) < 1.6 * x.nbytes


def test_an_enlarged_image_never_exists() -> None:
    x, weights = drawn(1, 32, 64, 64), ConvWeights(drawn(32, 32, 3, 3), None)
    peak = peak_bytes(lambda: upsample(x, weights, ConvSpec(padding=(1, 1)), Rules(pieces=SMALL)))
    assert peak < 1.4 * 4 * x.nbytes  # the result itself is four times x


def test_the_hidden_layer_of_a_feed_forward_part_never_exists() -> None:
    weights = FeedForwardWeights(
        *(drawn(*shape) for shape in ((32,), (32,), (256, 32), (256,), (32, 128), (32,)))
    )
    x = drawn(1, 4096, 32)

    def peak(cut: Pieces) -> int:
        return peak_bytes(lambda: feed_forward(x, weights, FeedForwardSpec(1e-5), Rules(pieces=cut)))

    assert peak(SMALL) < 1.6 * x.nbytes
    assert peak(WHOLE) > 8 * x.nbytes
