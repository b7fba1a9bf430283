"""A set of networks that is made ready beside the models: who waits, for what, and what goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from lib_accel.lora.arrival import TEXT, UNET, Arrival

PATIENCE_S = 10.0


class Slow:
    """A set whose reading, and whose writing of each part, a test lets happen."""

    def __init__(self, *held: str) -> None:
        self.written: list[str] = []
        self.gates = {name: threading.Event() for name in ("read", TEXT, UNET)}
        for name, gate in self.gates.items():
            if name not in held:
                gate.set()

    def prepare(self) -> Callable[[str], None]:
        assert self.gates["read"].wait(PATIENCE_S)
        return self.fuse

    def fuse(self, part: str) -> None:
        assert self.gates[part].wait(PATIENCE_S)
        self.written.append(part)


def _beside(call: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def _ends(thread: threading.Thread) -> bool:
    thread.join(PATIENCE_S)
    return not thread.is_alive()


def test_text_is_written_first_and_goes_on_before_the_unet_is() -> None:
    slow = Slow(UNET)
    arrival = Arrival(slow.prepare)
    arrival.before_call(TEXT)
    assert slow.written == [TEXT]
    assert not arrival.is_done
    unet = _beside(lambda: arrival.before_call(UNET))
    unet.join(0.05)
    assert unet.is_alive()
    slow.gates[UNET].set()
    assert _ends(unet)
    assert slow.written == [TEXT, UNET]


def test_a_part_is_written_once() -> None:
    slow = Slow()
    arrival = Arrival(slow.prepare)
    arrival.wait()
    for part in (TEXT, UNET, UNET):
        arrival.before_call(part)
    assert slow.written == [TEXT, UNET]
    assert arrival.is_done


def test_some_calls_of_the_unet_may_go_on_without_the_set() -> None:
    slow = Slow("read")
    arrival = Arrival(slow.prepare, late_calls=2)
    arrival.before_call(UNET)
    arrival.before_call(UNET)
    assert slow.written == []
    third = _beside(lambda: arrival.before_call(UNET))
    third.join(0.05)
    assert third.is_alive()
    slow.gates["read"].set()
    assert _ends(third)
    assert slow.written == [TEXT, UNET]


def test_a_set_that_may_be_late_is_written_by_a_call_alone() -> None:
    slow = Slow()
    arrival = Arrival(slow.prepare, late_calls=5)
    arrival._fuse.result()
    assert slow.written == []  # the UNet may be computing
    arrival.before_call(UNET)
    assert slow.written == [TEXT, UNET]


@pytest.mark.parametrize("late_calls", [0, 3])
def test_what_went_wrong_is_raised_by_every_call_that_needs_it(late_calls: int) -> None:
    def prepare() -> Callable[[str], None]:
        raise ValueError("no such file")

    arrival = Arrival(prepare, late_calls)
    with pytest.raises(ValueError, match="no such file"):
        arrival.wait()
    for part in (TEXT, UNET):
        with pytest.raises(ValueError, match="no such file"):
            arrival.before_call(part)
    assert not arrival.is_done
