"""What is asked of CUDA, and in which order, where there is none; test_cuda_graph_gpu.py asks CUDA itself."""

from __future__ import annotations

import contextlib
import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.errors import CaptureError
from lib_accel.graphs import cuda_graph
from lib_accel.graphs.cuda_graph import CudaLauncher

DEVICE = torch.device("cuda", 0)


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def synchronize(self) -> None:
        self.cuda.calls.append(f"synchronize {self.name}")

    def wait_stream(self, other: FakeStream) -> None:
        self.cuda.calls.append(f"{self.name} waits for {other.name}")


class FakeGraph:
    cuda: FakeCuda

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        assert not gc.isenabled()
        assert not torch.backends.cudnn.benchmark
        self.cuda.calls.append(f"begin on {self.cuda.current.name} in {pool}, {capture_error_mode}")
        self.cuda.is_capturing = True

    def capture_end(self) -> None:
        self.cuda.calls.append("end")
        self.cuda.is_capturing = False
        if self.cuda.end_fails:
            raise RuntimeError("the capture is invalid")

    def replay(self) -> None:
        self.cuda.calls.append(f"replay on {self.cuda.current.name}")

    def reset(self) -> None:
        self.cuda.calls.append("reset")


class FakeCuda:
    """What cuda_graph.py asks of torch.cuda, written down."""

    OutOfMemoryError = torch.cuda.OutOfMemoryError

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.current = self.default = FakeStream(self, "default")
        self.is_capturing = self.end_fails = False
        self.free = 64 * 2**30
        self.reserved = self.idle = 0
        self._streams, self._pools = itertools.count(), itertools.count()
        self.CUDAGraph = type("Graph", (FakeGraph,), {"cuda": self})

    def Stream(self, device: torch.device) -> FakeStream:
        return FakeStream(self, f"stream {next(self._streams)}")

    def graph_pool_handle(self) -> str:
        return f"pool {next(self._pools)}"

    def current_device(self) -> int:
        return 0

    def current_stream(self, device: torch.device) -> FakeStream:
        return self.current

    @contextlib.contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def device(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def memory_allocated(self, device: torch.device) -> int:
        return self.reserved - self.idle

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return self.free, 80 * 2**30

    def empty_cache(self) -> None:
        self.calls.append("empty cache")

    def memory_reserved(self, device: torch.device) -> int:
        return self.reserved

    def is_current_stream_capturing(self) -> bool:
        return self.is_capturing

    def get_device_properties(self, device: torch.device) -> Any:
        return type("Properties", (), {"total_memory": 80 * 2**30})


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(cuda_graph.torch, "cuda", fake)
    return fake


def _raise(error: BaseException) -> Any:
    raise error


def recorded(launcher: CudaLauncher, function: Callable[[], Any] | None = None) -> Any:
    return launcher.record(function or (lambda: [torch.ones(2)]), [], DEVICE)


def test_a_capture_is_behind_all_work_on_a_stream_of_its_own_and_ends_no_other_threads(
    cuda: FakeCuda,
) -> None:
    recording = recorded(CudaLauncher())
    recording.replay()
    assert cuda.calls == [
        "synchronize default",
        "begin on stream 0 in pool 1, thread_local",
        "end",
        "default waits for stream 0",
        "replay on default",
    ]


def test_its_size_is_what_torch_took_meanwhile(cuda: FakeCuda) -> None:
    def function() -> list[Tensor]:
        cuda.reserved += 7 * 2**20
        return [torch.ones(2)]

    assert recorded(CudaLauncher(), function).size_bytes == 7 * 2**20


@pytest.mark.parametrize("was_collecting", [True, False])
def test_collector_and_choice_of_algorithms_are_as_before(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, was_collecting: bool
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    if not was_collecting:
        gc.disable()
    try:
        recorded(CudaLauncher())
        assert gc.isenabled() is was_collecting
        with pytest.raises(CaptureError):
            recorded(CudaLauncher(), lambda: [torch.ones(2).view(3)])
        assert gc.isenabled() is was_collecting
        assert torch.backends.cudnn.benchmark
    finally:
        gc.enable()


def test_after_a_capture_that_cannot_be_ended_there_is_no_other(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda.end_fails = True

    def function() -> list[Tensor]:
        raise RuntimeError("operation not permitted\nand much more")

    launcher, ended = CudaLauncher(), []
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *told: ended.append(told), raising=False)
    assert launcher.fault() is None
    with pytest.raises(CaptureError, match=r"^RuntimeError: operation not permitted$"):
        recorded(launcher, function)
    assert not cuda.is_capturing
    assert "operation not permitted" in (launcher.fault() or "")
    assert ended == [(0, "pool 1")]  # torch's allocator, which does not know
    assert cuda.calls[-2:] == ["begin on stream 0 in pool 2, thread_local", "end"]  # frees random numbers


def test_a_failed_function_whose_capture_ends_well_is_no_harm(cuda: FakeCuda) -> None:
    launcher = CudaLauncher()
    with pytest.raises(CaptureError, match=r"^ValueError: bad$"):
        recorded(launcher, lambda: _raise(ValueError("bad")))
    assert launcher.fault() is None
    assert cuda.calls[-1] == "end"


def test_an_error_without_a_text_has_its_kind_for_a_reason(cuda: FakeCuda) -> None:
    def function() -> list[Tensor]:
        raise KeyError

    with pytest.raises(CaptureError, match=r"^KeyError: $"):
        recorded(CudaLauncher(), function)


def test_lack_of_memory_comes_out_as_that(cuda: FakeCuda) -> None:
    def function() -> list[Tensor]:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        recorded(CudaLauncher(), function)
    assert not cuda.is_capturing


@pytest.mark.parametrize(("free", "idle", "is_emptied"), [(64, 30, False), (1, 30, True), (1, 0, False)])
def test_the_cache_is_given_back_where_memory_is_short_and_that_helps(
    cuda: FakeCuda, free: int, idle: int, is_emptied: bool
) -> None:
    cuda.free, cuda.idle = free * 2**30, idle * 2**30
    recorded(CudaLauncher())
    assert ("empty cache" in cuda.calls) is is_emptied
    if is_emptied:
        begun = next(call for call in cuda.calls if call.startswith("begin"))
        assert cuda.calls.index("empty cache") < cuda.calls.index(begun)


def test_lack_of_memory_that_cuda_itself_tells_is_tried_again(cuda: FakeCuda) -> None:
    cuda.end_fails = True
    launcher = CudaLauncher()
    with pytest.raises(torch.OutOfMemoryError):
        recorded(launcher, lambda: _raise(RuntimeError("CUDA error: out of memory")))
    assert launcher.fault() is None


def test_who_ends_the_program_in_a_capture_does_so(cuda: FakeCuda) -> None:
    cuda.end_fails = True
    with pytest.raises(KeyboardInterrupt):
        recorded(CudaLauncher(), lambda: _raise(KeyboardInterrupt()))


def test_graphs_share_a_pool_and_the_next_after_the_last_one_begins_another(cuda: FakeCuda) -> None:
    launcher = CudaLauncher()
    first, second = recorded(launcher), recorded(launcher)
    first.drop()
    third = recorded(launcher)
    pools = [call.split(" in ")[1] for call in cuda.calls if call.startswith("begin")]
    assert len(set(pools)) == 1
    for recording in (second, third):
        recording.drop()
    fourth = recorded(launcher)
    assert cuda.calls[-3].split(" in ")[1] not in pools
    del fourth  # as when its model is gone
    gc.collect()
    recorded(launcher)
    assert len({call.split(" in ")[1] for call in cuda.calls if call.startswith("begin")}) == 3


def test_a_dropped_recording_holds_nothing_and_is_reset_once(cuda: FakeCuda) -> None:
    recording = recorded(CudaLauncher())
    alive = weakref.ref(recording.outputs[0])
    recording.drop()
    recording.drop()
    assert alive() is None
    assert cuda.calls.count("reset") == 1
    with pytest.raises(AssertionError, match="dropped"):
        recording.replay()


def test_work_of_another_stream_waits_for_that_of_the_one_before(cuda: FakeCuda) -> None:
    launcher = CudaLauncher()
    for _ in range(2):
        with launcher.turn(DEVICE) as is_ours:
            assert is_ours
    assert cuda.calls == []
    other = cuda.Stream(DEVICE)
    with cuda.stream(other), launcher.turn(DEVICE):
        pass
    assert cuda.calls == [f"{other.name} waits for default"]


def test_only_one_has_the_turn_and_an_error_ends_it(cuda: FakeCuda) -> None:
    launcher = CudaLauncher()
    with launcher.turn(DEVICE), launcher.turn(DEVICE) as is_ours:
        assert not is_ours
    with contextlib.suppress(ValueError), launcher.turn(DEVICE):
        raise ValueError
    with launcher.turn(DEVICE) as is_ours:
        assert is_ours


def test_graphs_may_take_an_eighth_of_the_gpu(cuda: FakeCuda) -> None:
    assert CudaLauncher().largest_bytes(DEVICE) == 10 * 2**30


def test_who_captures_himself_is_left_alone(cuda: FakeCuda) -> None:
    launcher = CudaLauncher()
    assert not launcher.is_recording(DEVICE)
    cuda.is_capturing = True
    assert launcher.is_recording(DEVICE)
