"""As much of the webui's processing, queue and state as a generation needs (modules/processing.py)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

from PIL import Image


class FakeQueue:
    """modules.call_queue.queue_lock: not to be entered twice."""

    def __init__(self) -> None:
        self.is_held = False
        self.entered = 0

    def __enter__(self) -> None:
        assert not self.is_held
        self.is_held = True
        self.entered += 1

    def __exit__(self, *error: object) -> None:
        self.is_held = False


class FakeState(SimpleNamespace):
    """modules.shared_state.State."""

    def __init__(self) -> None:
        super().__init__(job="", time_start=1.0, textinfo=None, job_count=0, job_no=0)
        self.interrupted = self.stopping_generation = self.processing_has_refined_job_count = False
        self.jobs: list[str] = []

    def begin(self, job: str) -> None:
        self.jobs.append(job)
        self.job, self.interrupted, self.stopping_generation = job, False, False
        self.job_count = -1

    def end(self) -> None:
        self.job, self.job_count = "", 0


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
        self.is_closed = False
        vars(self).update(asked)

    def close(self) -> None:
        self.is_closed = True


class FakeResult:
    """modules.processing.Processed."""

    def __init__(self, images: list[Image.Image]) -> None:
        self.images, self.index_of_first_image = images, 0
        self.infotexts = [f"parameters of picture {number}" for number in range(len(images))]
        self.comments = ""


def fill(modules: Mapping[str, ModuleType]) -> None:
    """Gives the modules what they are known for."""
    shared, processing = modules["shared"], modules["processing"]
    drawn: list[tuple[FakeRequest, dict[str, Any]]] = []  # with the settings that were in force

    def process_images(request: FakeRequest) -> FakeResult:
        options = shared.opts.data
        before = dict(options)
        options.update(request.override_settings)
        fix_seed(request)
        request.all_seeds = [request.seed + number for number in range(request.batch_size)]
        drawn.append((request, dict(options)))
        denoiser = modules["script_callbacks"].registered.get("on_cfg_denoiser", lambda params: None)
        for step in range(request.steps):
            denoiser(SimpleNamespace(sampling_step=step))
        result = FakeResult(request.paint(request))
        options.clear()
        options.update(before)
        return result

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
