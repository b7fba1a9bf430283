"""CUDA graphs as the launcher captures and replays them, and whole UNets by them, on a GPU."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_accel.engine import Engine
from lib_accel.errors import CaptureError
from lib_accel.graphs import cuda_graph
from lib_accel.graphs.cuda_graph import CudaLauncher, CudaRecording
from lib_accel.graphs.launch import Launches
from lib_accel.graphs.proof import tolerance
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.options import Options
from tests.fakes.host import FakeHost
from tests.fakes.models import Inputs, difference, inputs, run, tiny_sgm_unet, tiny_unet

pytestmark = pytest.mark.gpu

LIMIT = 10 * tolerance("", torch.float16)


def gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def on_gpu(given: Inputs) -> Inputs:
    return Inputs(*(None if each is None else each.cuda() for each in given))


@pytest.fixture
def launcher() -> CudaLauncher:
    return CudaLauncher()


def recorded(launcher: CudaLauncher, function: Callable[[Tensor], Any]) -> tuple[CudaRecording, Tensor]:
    """A recording, as the second use of a call makes it, and its input."""
    x = torch.randn(64, 64, device=gpu())
    with torch.no_grad(), launcher.turn(gpu()):
        function(x)
        return launcher.record(lambda: [function(x)], [x], gpu()), x


def twice(x: Tensor) -> Tensor:
    return F.silu(x @ x) * 2


# The launcher


def test_a_replay_computes_what_is_in_the_input(launcher: CudaLauncher) -> None:
    recording, x = recorded(launcher, twice)
    for _ in range(3):
        x.normal_()
        recording.replay()
        assert difference(recording.outputs[0].cpu(), twice(x).cpu()) < 1e-5
    assert recording.size_bytes >= 0


def test_another_thread_replays_what_this_one_recorded(launcher: CudaLauncher) -> None:
    recording, x = recorded(launcher, twice)
    x.normal_()
    torch.cuda.synchronize()
    found: list[Tensor] = []

    def replay() -> None:
        with launcher.turn(gpu()) as is_ours:
            assert is_ours
            recording.replay()
            found.append(recording.outputs[0].clone())
        torch.cuda.synchronize()

    other = threading.Thread(target=replay)
    other.start()
    other.join()
    assert difference(found[0].cpu(), twice(x).cpu()) < 1e-5


def test_other_streams_wait_for_each_other(launcher: CudaLauncher) -> None:
    recording, x = recorded(launcher, lambda x: twice(twice(twice(x))))
    streams, results = [torch.cuda.Stream() for _ in range(3)], []
    values = [torch.randn_like(x) for _ in range(30)]
    torch.cuda.synchronize()
    for number, value in enumerate(values):
        with torch.cuda.stream(streams[number % 3]), launcher.turn(gpu()):
            x.copy_(value)
            recording.replay()
            results.append(recording.outputs[0].clone())
    torch.cuda.synchronize()
    for value, result in zip(values, results, strict=True):
        assert difference(result.cpu(), twice(twice(twice(value))).cpu()) < 1e-5


def test_other_threads_may_work_while_one_captures(launcher: CudaLauncher) -> None:
    is_over = threading.Event()

    def preview() -> None:
        while not is_over.is_set():
            torch.randn(256, 256, device=gpu()).matmul(torch.ones(256, 256, device=gpu())).sum().item()
            torch.cuda.empty_cache()

    other = threading.Thread(target=preview)
    other.start()
    try:
        for _ in range(10):
            recording, x = recorded(launcher, lambda x: twice(twice(x)))
            recording.replay()
            assert difference(recording.outputs[0].cpu(), twice(twice(x)).cpu()) < 1e-5
    finally:
        is_over.set()
        other.join()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x + torch.tensor(3.0).to(x.device),
        lambda x: x.cpu().to(x.device),
    ],
    ids=["number", "mask", "new number", "to the CPU and back"],
)
def test_what_waits_cannot_be_captured_and_the_next_one_can(launcher: CudaLauncher, function: Any) -> None:
    with pytest.raises(CaptureError):
        recorded(launcher, function)
    assert not launcher.is_recording(gpu())
    recording, x = recorded(launcher, twice)
    recording.replay()
    assert difference(recording.outputs[0].cpu(), twice(x).cpu()) < 1e-5


def test_an_error_without_text_is_told_by_its_kind(launcher: CudaLauncher) -> None:
    runs: list[int] = []

    def fail_second(x: Tensor) -> Tensor:
        runs.append(1)
        if len(runs) == 2:
            raise KeyError
        return x * 2

    with pytest.raises(CaptureError, match="KeyError"):
        recorded(launcher, fail_second)


def test_memory_that_ends_in_a_capture_is_told_and_the_next_one_can(launcher: CudaLauncher) -> None:
    total, runs = torch.cuda.get_device_properties(gpu()).total_memory, []

    def too_large(x: Tensor) -> Tensor:
        runs.append(1)
        return x if len(runs) == 1 else x + torch.empty(2 * total, dtype=torch.uint8, device=gpu()).sum()

    with pytest.raises(torch.OutOfMemoryError):
        recorded(launcher, too_large)
    recording, x = recorded(launcher, twice)
    recording.replay()
    assert difference(recording.outputs[0].cpu(), twice(x).cpu()) < 1e-5


def test_memory_is_back_after_a_drop(launcher: CudaLauncher) -> None:
    recorded(launcher, twice)[0].drop()
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(gpu())
    recordings = [recorded(launcher, lambda x: x.repeat(256, 256) * 2)[0] for _ in range(3)]
    assert torch.cuda.memory_reserved(gpu()) > before
    assert sum(each.size_bytes for each in recordings) > 64 * 2**20
    torch.cuda.synchronize()
    for each in recordings:
        each.drop()
    del recordings, each
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved(gpu()) <= before + 4 * 2**20


def test_recordings_share_their_memory(launcher: CudaLauncher) -> None:
    first, _ = recorded(launcher, lambda x: (x.repeat(256, 256) * 2).sum(0))
    second, _ = recorded(launcher, lambda x: (x.repeat(256, 256) * 3).sum(0))
    assert second.size_bytes < first.size_bytes / 2


def test_settings_are_as_before_and_no_algorithm_is_tried(
    launcher: CudaLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    seen: list[tuple[bool, bool]] = []
    layer = nn.Conv2d(1, 4, 3).to(gpu()).half()

    def convolve(x: Tensor) -> Tensor:
        seen.append((torch.backends.cudnn.benchmark, gc.isenabled()))
        return layer(x.half()[None, None])

    recording, x = recorded(launcher, convolve)
    assert seen == [(True, True), (False, False)]
    assert torch.backends.cudnn.benchmark
    assert gc.isenabled()
    x.normal_()
    recording.replay()
    with torch.no_grad():
        assert difference(recording.outputs[0].cpu(), layer(x.half()[None, None]).cpu()) < LIMIT


# UNets by it


class Studio:
    """Draws on the GPU under autocast, as the webui does."""

    def __init__(self) -> None:
        self.host = FakeHost()
        self.host.asked = Options(launch="graph")
        self.launches = Launches({"cuda": CudaLauncher()}, Verdicts(None))
        self.engine = Engine(self.host, None, self.launches)

    def call(self, unet: nn.Module, given: Inputs, launch: str = "graph") -> Tensor:
        self.host.asked = Options(launch=launch)
        with torch.autocast("cuda", torch.float16):
            return run(unet, given)

    def is_right(self, unet: nn.Module, given: Inputs) -> bool:
        result = self.call(unet, given)
        return difference(result.cpu(), self.call(unet, given, "eager").cpu()) <= LIMIT


@pytest.fixture
def studio() -> Iterator[Studio]:
    studio = Studio()
    studio.engine.attach()
    studio.engine.begin_generation()
    yield studio
    studio.engine.detach()


FAMILIES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "ldm": (tiny_unet, {}),
    "sgm": (tiny_sgm_unet, {"vector": True}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_unets_are_as_eager(studio: Studio, family: str) -> None:
    make, form = FAMILIES[family]
    unet = make().cuda()
    for seed in range(5):
        for tokens in (77, 154):
            assert studio.is_right(unet, on_gpu(inputs(seed=seed, tokens=tokens, **form)))
    report = studio.engine.report().launches
    assert (report.captures, report.replays) == (2, 6)
    assert report.reasons == {}


def test_units_are_as_eager(studio: Studio) -> None:
    unet: Any = tiny_unet().cuda()
    handle = unet.middle_block.register_forward_hook(lambda module, args, out: out * 1.5)
    for seed in range(5):
        assert studio.is_right(unet, on_gpu(inputs(seed=seed)))
    handle.remove()
    report = studio.engine.report().launches
    assert report.graphs > 3
    assert report.replays == 3 * report.graphs


@pytest.mark.parametrize("benchmark", [False, True])
def test_the_hosts_choice_of_algorithms_does_not_matter(
    studio: Studio, benchmark: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
    unet = tiny_unet().cuda()
    for seed in range(4):
        assert studio.is_right(unet, on_gpu(inputs(seed=seed)))
    assert studio.engine.report().launches.replays == 2


def test_weights_that_moved_are_captured_anew(studio: Studio) -> None:
    unet = tiny_unet().cuda()
    kept = []
    for _ in range(3):
        for seed in range(4):
            assert studio.is_right(unet, on_gpu(inputs(seed=seed)))
        kept.append(next(unet.parameters()).data)  # so that other memory is taken
        unet.cpu().cuda()
    assert studio.engine.report().launches.captures >= 2


def test_weights_that_change_in_place_are_read(studio: Studio) -> None:
    unet, given = tiny_unet().cuda(), on_gpu(inputs())
    for _ in range(3):
        before = studio.call(unet, given)
    with torch.no_grad():
        for each in unet.parameters():
            each.mul_(1.1)
    assert difference(studio.call(unet, given).cpu(), before.cpu()) > 0.01
    assert studio.is_right(unet, given)
    assert studio.engine.report().launches.captures == 1


def test_a_preview_on_another_thread_runs_as_always(studio: Studio) -> None:
    unet = tiny_unet().cuda()
    wrong: list[int] = []

    def preview() -> None:
        stream = torch.cuda.Stream()
        for seed in range(10):
            with torch.cuda.stream(stream):
                result = studio.call(unet, given[seed % 3])
            stream.synchronize()
            if difference(result.cpu(), expected[seed % 3]) > LIMIT:
                wrong.append(seed)

    given = [on_gpu(inputs(seed=seed)) for seed in range(3)]
    expected = [studio.call(unet, each, "eager").cpu() for each in given]
    other = threading.Thread(target=preview)
    other.start()
    for turn in range(30):
        assert difference(studio.call(unet, given[turn % 3]).cpu(), expected[turn % 3]) <= LIMIT
    other.join()
    assert wrong == []
    assert studio.engine.report().launches.replays > 0


def test_memory_is_back_when_it_is_released(studio: Studio) -> None:
    unet = tiny_unet().cuda()
    given = on_gpu(inputs(size=(64, 64), batch=4))
    studio.call(unet, given, "eager")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        studio.call(unet, given)
    assert studio.engine.report().launches.mib > 0
    studio.engine.release_memory()
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 8 * 2**20
    assert studio.is_right(unet, given)


def test_one_launcher_serves_all_engines() -> None:
    assert cuda_graph.launcher_of_this_process() is cuda_graph.launcher_of_this_process()
