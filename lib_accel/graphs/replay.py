"""One recorded call: made, held against what the call gave, and done again with other inputs."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lib_accel.graphs.launcher import Launcher, Recording
from lib_accel.graphs.proof import difference, tolerance
from lib_accel.graphs.trees import Tree, Whereabouts, flattened, like
from lib_accel.graphs.watch import Watch

_SLOWER = 1.05  # times what it takes without: less is noise
_ALIGNMENT = 16  # bytes that a kernel reads at once, if it may
_ROUNDS = 4  # the first takes the graph to the GPU; one must be as fast, as the machine may do other things
# A replay does what the call before it did, with the algorithms that cuDNN takes without trying them out.
_TIMES_TOLERANCE = 10.0


class Replay:
    """A recording and the memory around it. Inputs are copied in, and results out: they are the caller's."""

    def __init__(
        self, recording: Recording, inputs: Sequence[Tensor], result: Tree, weights: Sequence[Any]
    ) -> None:
        self._recording, self._inputs, self._result = recording, inputs, result
        self._weights = Whereabouts(weights)

    @classmethod
    def of(
        cls,
        function: Callable[[Any], Any],
        given: Tree,
        weights: Sequence[Any],
        launcher: Launcher,
        *,
        is_watched: bool,
    ) -> Replay:
        """Records a call of `function` on something like `given`, which has just been done on this thread.

        weights: all that it reads besides. is_watched: whether it is first run once more to see that nothing
        in it waits. Raises CaptureError, and what the function or torch raises.
        """
        with torch.inference_mode(False), torch.no_grad(), _without_cached_casts():
            # Not the values of this call: what is not computed anew in a replay would look right.
            inputs = [like(each).zero_() for each in given.tensors]
            results: list[Tree] = []

            def recorded() -> Sequence[Tensor]:
                results[:] = [flattened(function(given.rebuilt(inputs)))]
                return results[0].tensors

            if is_watched:
                with Watch():  # type: ignore[no-untyped-call]
                    recorded()
            elif any(map(_lies_otherwise, inputs, given.tensors)):
                recorded()  # else what never ran on tensors that lie so is loaded in the capture, and fails
            recording = launcher.record(recorded, inputs, inputs[0].device)
        return cls(recording, inputs, results[0], weights)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._inputs[0].device

    @property
    def size_bytes(self) -> int:
        """Of the recording and its inputs."""
        return self._recording.size_bytes + sum(each.nbytes for each in self._inputs)

    def reads(self, weights: Sequence[Any]) -> bool:
        """Whether these weights lie where it reads them."""
        return self._weights.are_of(weights)

    def run(self, given: Sequence[Tensor]) -> Any:
        """The result for these inputs."""
        with torch.no_grad():
            torch._foreach_copy_(list(self._inputs), list(given))  # one launch for all of a dtype
            self._recording.replay()
            return self._result.rebuilt([each.clone() for each in self._recording.outputs])

    def drop(self) -> None:
        """Gives up its memory; see Recording.drop."""
        self._recording.drop()

    def why_not(
        self, given: Tree, expected: Any, usual_s: float, launcher: Launcher, *, is_forced: bool
    ) -> str | None:
        """Why it is not to be run in place of the call that gave `expected` for `given`, or None.

        usual_s: seconds of that call, which do not matter if `is_forced`.
        """
        before, replay_s = flattened(expected), math.inf
        if self._result.key != before.key:
            return "its result has another form when it is recorded"
        for number in range(_ROUNDS):
            began = time.perf_counter()
            found = self.run(given.tensors)
            launcher.wait(self.device)
            replay_s = time.perf_counter() - began
            fault = _fault(flattened(found), before) if number == 0 else None
            if fault is not None or is_forced or replay_s <= _SLOWER * usual_s:
                return fault
        return f"a replay takes {1000 * replay_s:.2f} ms, without it {1000 * usual_s:.2f} ms"


def _lies_otherwise(ours: Tensor, theirs: Tensor) -> bool:
    """Whether kernels may be others: by strides, or by where the memory begins."""
    begins = [each.data_ptr() % _ALIGNMENT == 0 for each in (ours, theirs)]
    return ours.stride() != theirs.stride() or begins[0] != begins[1]


def _fault(found: Tree, expected: Tree) -> str | None:
    for ours, theirs in zip(found.tensors, expected.tensors, strict=True):
        apart, limit = difference(ours, theirs), _TIMES_TOLERANCE * tolerance("", theirs.dtype)
        if not apart <= limit:
            return f"a replay differs by {apart:.1e}, tolerated are {limit:.1e}"
    return None


@contextlib.contextmanager
def _without_cached_casts() -> Iterator[None]:
    """Autocast keeps cast weights until its block ends; a recording would read them after that.

    To switch that off would be another global state, for which compiled code is not made.
    """
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()
