"""One row of the kernels: a kernel, or torch's compiler, against the plain torch of blocks at one shape."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib_accel.bench.gpu.counting import costs, launches
from lib_accel.bench.gpu.floors import floor_ms
from lib_accel.bench.gpu.kernels_cases import predicted_ms
from lib_accel.bench.gpu.kernels_shapes import SHAPES, toy_of
from lib_accel.bench.gpu.kernels_subjects import Results, Way, subject_of
from lib_accel.bench.gpu.models import Where
from lib_accel.bench.gpu.parts import KERNEL, Case
from lib_accel.bench.gpu.sides import Makers, SideError
from lib_accel.bench.gpu.timing import Pace, Turn, paired_ms, ratio_figures
from lib_accel.errors import CaptureError
from lib_accel.graphs.cuda_graph import launcher_of_this_process
from lib_accel.graphs.launcher import Launcher
from lib_accel.kernels.gpus import Gpu, floor_us, gpu_on
from lib_accel.kernels.tolerance import Tolerance

Figures = dict[str, Any]
Work = Callable[[], Sequence[Tensor]]

# Sets of inputs that calls take in turn: together larger than any GPU's L2 cache, or as many as are of use.
# A cache that answered instead of the memory would flatter whoever reads most.
_SETS_BYTES, _MOST_SETS, _FEWEST_SETS = 256 * 2**20, 512, 2

_RUN_MS, _MOST_CALLS = 10.0, 100  # of a timed run: a call is a pass over all sets here


class Chosen(NamedTuple):
    """A way to compute a subject, and what is to be known of it."""

    way: Way
    has_operations: bool  # whether what it does passes torch's dispatcher
    about: Figures


class KernelStand:
    """A kernel at one shape, as its rows find it; plain torch runs alone once, when that is first needed."""

    def __init__(self, case: Case, where: Where, pace: Pace, makers: Makers) -> None:
        shape = self.shape = SHAPES[case.name]
        self.where, self.makers = where, makers
        self.pace = replace(pace, run_ms=min(pace.run_ms, _RUN_MS), most_calls=_MOST_CALLS)
        self.subject = subject_of(toy_of(shape) if where.is_toy else shape, where.device)
        self.launcher: Launcher | None = None
        self.why_no_graph = "" if self.subject.is_replayed else "as weights are changed between pictures"
        if where.device.type != "cuda":
            self.why_no_graph = "there is no GPU"
        elif self.subject.is_replayed:
            self.launcher = launcher_of_this_process()

    @property
    def gpu(self) -> Gpu | None:
        """What is known of this GPU; None of others, and in a dry run."""
        return None if self.where.is_toy else gpu_on(self.where.device)

    @functools.cached_property
    def sets(self) -> list[tuple[Any, ...]]:
        """The inputs several times over, each in memory of its own."""
        inputs = self.subject.inputs
        count = _FEWEST_SETS
        if not self.where.is_toy:
            count = min(max(count, _SETS_BYTES // self.subject.least_bytes), _MOST_SETS)
        return [inputs, *(_copied(inputs) for _ in range(count - 1))]

    @functools.cached_property
    def plain_facts(self) -> Figures:
        """What is known of plain torch before anything else is there."""
        subject = self.subject
        return {
            "plain_bytes": sum(costs(self.once(subject.plain)).bytes.values()),
            "plain_launches": self.launches(subject.plain, has_operations=True)["launches"],
            "plain_tolerance_share": self.tolerance_share(subject.plain),
        }

    def once(self, way: Way) -> Work:
        """One call of it."""
        return lambda: _passed(way, self.sets[:1])

    def work(self, way: Way) -> Work:
        """A pass over all sets."""
        return lambda: _passed(way, self.sets)

    def launches(self, way: Way, *, has_operations: bool) -> Figures:
        """Of one call, as counting.launches has them."""
        self.once(way)()
        return launches(self.once(way), self.where.device, has_operations=has_operations)

    def tolerance_share(self, way: Way, *, is_kernel: bool = False) -> float:
        """How far the result is from the exact one, in what the kernel's table allows; 1 is the most.

        is_kernel: nothing that it leaves unwritten can pass for right because it was so before.
        """
        for tensor in self.subject.written:
            tensor.fill_(torch.nan)
        # Not for compiled code, which torch would compile a second time then.
        with _new_memory_is_nan() if is_kernel else contextlib.nullcontext():
            results = _passed(way, self.sets[:1])
        return distance(results, _passed(self.subject.exact, self.sets[:1]), self.subject.tolerance)


@contextlib.contextmanager
def kernel_stand(case: Case, where: Where, pace: Pace, makers: Makers) -> Iterator[KernelStand]:
    """The stand for the block; the compiler has forgotten what it made after it."""
    yield KernelStand(case, where, pace, makers)
    torch._dynamo.reset()


def kernel_row(stand: KernelStand, name: str) -> Figures:
    """All figures of a side against plain torch. Raises SideError where the kernel takes no such inputs."""
    subject, chosen = stand.subject, chosen_way(stand, name)
    facts = stand.plain_facts
    share = stand.tolerance_share(chosen.way, is_kernel=chosen.way is subject.kernel)
    times, launched = timed(stand, chosen.way)
    speed = ratio_figures({side: [each / len(stand.sets) for each in ms] for side, ms in times.items()})
    least = floor_ms(subject.flop, subject.least_bytes)
    counted = stand.launches(chosen.way, has_operations=chosen.has_operations)
    return {
        **speed,
        "least_bytes": subject.least_bytes,
        "floor_ms": least,
        "floor_share": least / speed["ms"],
        "plain_floor_share": least / speed["stock_ms"],
        **of_this_gpu(stand, chosen, speed["ms"]),
        # If only memory counted, and each byte was moved as fast by plain torch.
        "predicted_ratio": facts["plain_bytes"] / subject.least_bytes,
        "tolerance_share": share,
        **facts,
        **counted,
        "launched": launched,
        "input_sets": len(stand.sets),
        "about": chosen.about,
    }


def of_this_gpu(stand: KernelStand, chosen: Chosen, ms: float) -> Figures:
    """The kernel's time as predicted, and the floor by the GPU's own figures; None where they are unknown."""
    subject, gpu = stand.subject, stand.gpu
    if gpu is None:
        return {"predicted_ms": None, "own_floor_ms": None, "own_floor_share": None}
    least = floor_us(gpu, subject.flop, subject.least_bytes) / 1000
    predicted = None
    if chosen.way is subject.kernel:
        predicted = predicted_ms(stand.shape, subject.candidates(*subject.inputs)[0], gpu)
    return {"predicted_ms": predicted, "own_floor_ms": least, "own_floor_share": least / ms}


def chosen_way(stand: KernelStand, name: str) -> Chosen:
    """The way of that name; in a dry run the reference stands in for a kernel that cannot run here."""
    subject = stand.subject
    if name != KERNEL:
        compiled: Any = torch.compile(subject.plain, dynamic=False, backend=stand.makers.others)
        return Chosen(compiled, False, {})
    reasons = subject.why_not(*subject.inputs)
    if not reasons:
        return Chosen(subject.kernel, True, {})
    if not stand.where.is_toy:
        raise SideError("; ".join(reasons))
    return Chosen(subject.reference, True, {"stands_in": f"the reference, since {'; '.join(reasons)}"})


def timed(stand: KernelStand, way: Way) -> tuple[dict[str, list[float]], str]:
    """Milliseconds of passes of plain torch and of `way` in turn, and how they were launched.

    Both by graphs, which leave the time of the GPU alone, or, where one of them cannot be recorded or the
    subject never is, both kernel by kernel, where the program's own time counts.
    """
    works = [stand.work(stand.subject.plain), stand.work(way)]
    device, reason = stand.where.device, stand.why_no_graph
    if stand.launcher is not None:
        try:
            with contextlib.ExitStack() as stack:
                plain, ours = (stack.enter_context(replayed(each, stand.launcher, device)) for each in works)
                return paired_ms(Turn.of(plain), Turn.of(ours), device, stand.pace), "by graph"
        except CaptureError as error:
            reason = str(error)
    plain, ours = works
    return paired_ms(Turn.of(plain), Turn.of(ours), device, stand.pace), f"kernel by kernel: {reason}"


@contextlib.contextmanager
def replayed(work: Work, launcher: Launcher, device: torch.device) -> Iterator[Callable[[], object]]:
    """A call that does the work again from a graph. Raises CaptureError if it cannot be recorded."""
    work()  # what is made or compiled at a first call is made before
    recording = launcher.record(work, (), device)
    try:
        yield recording.replay
    finally:
        launcher.wait(device)
        recording.drop()


def distance(results: Sequence[Tensor], exact: Sequence[Tensor], tolerance: Tolerance) -> float:
    """The largest error of any value, as a share of what the tolerance allows it; NaN if there is any."""
    shares = []
    for ours, right in zip(results, exact, strict=True):
        assert ours.shape == right.shape
        allowed = tolerance.absolute + tolerance.relative * right.abs()
        shares.append(((ours.double() - right).abs() / allowed).max())
    return float(torch.stack(shares).max())


@contextlib.contextmanager
def _new_memory_is_nan() -> Iterator[None]:
    """Torch fills what it hands out, as it does where algorithms are to be deterministic."""
    was, warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)


def _passed(way: Way, sets: Sequence[tuple[Any, ...]]) -> Results:
    """The results for the last of the sets."""
    results: Results = ()
    with torch.no_grad():
        for inputs in sets:
            results = way(*inputs)
    return results


def _copied(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.clone()
    return tuple(map(_copied, inputs))
