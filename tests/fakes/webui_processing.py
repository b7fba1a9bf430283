"""As much of the webui's processing, queue and state as a generation needs (modules/processing.py)."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

from PIL import Image


class FakeQueue:
    """modules.call_queue.queue_lock: not to be entered twice."""

    def __init__(self) -> None:
        self.is_held = False

    def acquire(self, blocking: bool = True) -> bool:
        assert not (blocking and self.is_held)
        if self.is_held:
            return False
        self.is_held = True
        return True

    def release(self) -> None:
        assert self.is_held
        self.is_held = False


class FakeState(SimpleNamespace):
    """modules.shared_state.State."""

    def __init__(self) -> None:
        super().__init__(job="", time_start=1.0, textinfo=None, job_count=-1, job_no=0, sampling_step=0)
        self.interrupted = self.stopping_generation = self.processing_has_refined_job_count = False
        self.skipped = False
        self.jobs: list[str] = []

    def begin(self, job: str) -> None:
        self.jobs.append(job)
        self.job, self.interrupted, self.stopping_generation = job, False, False
        self.job_count = -1

    def end(self) -> None:
        self.job, self.job_count = "", 0

    def interrupt(self) -> None:
        self.interrupted = True


class FakeRequest:
    """modules.processing.StableDiffusionProcessingTxt2Img; `paint` gives its pictures."""

    cached_c = cached_uc = cached_hr_c = cached_hr_uc = None
    paint: Callable[[FakeRequest], list[Image.Image]] = staticmethod(
        lambda request: [Image.new("RGB", (request.width, request.height))] * request.batch_size
    )

    def __init__(self, **asked: Any) -> None:
        self.prompt, self.width, self.height, self.batch_size, self.steps = "", 64, 64, 1, 4
        self.seed, self.subseed = -1, -1
        self.override_settings: dict[str, Any] = {}
        self.comments: dict[str, int] = {}
        self.extra_generation_params: dict[str, Any] = {}
        self.scripts: Any = None
        self.script_args: tuple[Any, ...] = (0,)
        self.all_seeds: list[int] = []
        self.override_settings_restore_afterwards = True
        self.is_closed = False
        vars(self).update(asked)

    def close(self) -> None:
        self.is_closed = True

    def comment(self, text: str) -> None:
        self.comments[text] = 1


class FakeResult:
    """modules.processing.Processed."""

    def __init__(self, images: list[Image.Image]) -> None:
        self.images, self.index_of_first_image = images, 0
        self.infotexts = [f"parameters of picture {number}" for number in range(max(1, len(images)))]
        self.comments = ""


def fill(modules: Mapping[str, ModuleType]) -> None:
    """Gives the modules what they are known for."""
    shared, processing = modules["shared"], modules["processing"]
    drawn: list[tuple[FakeRequest, bool | None]] = []  # and whether we were on

    def process_images(request: FakeRequest) -> FakeResult:
        if request.scripts is not None:
            request.scripts.before_process(request)
        before = dict(shared.opts.data)
        shared.opts.data.update(request.override_settings)
        try:
            return inner(request)
        finally:
            if request.override_settings_restore_afterwards:
                shared.opts.data.clear()
                shared.opts.data.update(before)

    def inner(request: FakeRequest) -> FakeResult:
        fix_seed(request)
        request.all_seeds = [request.seed + number for number in range(request.batch_size)]
        if request.scripts is not None:
            request.scripts.process(request)
        drawn.append((request, is_on()))
        denoiser = modules["script_callbacks"].registered.get("on_cfg_denoiser", lambda params: None)
        for step in range(request.steps):
            denoiser(SimpleNamespace(sampling_step=step))
        is_interrupted = shared.state.interrupted
        result = FakeResult([] if is_interrupted else request.paint(request))
        shared.state.job_no += 1
        if request.scripts is not None:
            request.scripts.post_sample(request)
            request.scripts.postprocess(request, result)
        return result

    def is_on() -> bool | None:
        """Whether our engine would run, where there is one."""
        extension = sys.modules.get("lib_accel.extension")
        return None if extension is None else bool(extension._host.options().enabled)

    def fix_seed(request: FakeRequest) -> None:
        request.seed = random.randrange(2**32) if request.seed == -1 else request.seed
        request.subseed = random.randrange(2**32) if request.subseed == -1 else request.subseed

    vars(modules["call_queue"]).update(queue_lock=FakeQueue())
    vars(processing).update(
        process_images=process_images,
        fix_seed=fix_seed,
        StableDiffusionProcessingTxt2Img=FakeRequest,
        drawn=drawn,
    )
    shared.state = FakeState()
    shared.sd_model = SimpleNamespace(network_layer_mapping={})
