"""The webui as a painter: pictures for warm-up and benchmark, drawn in its own process and thrown away."""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from modules import call_queue, devices, paths_internal, processing, shared
from safetensors.torch import save_file
from torch import Tensor, nn

from lib_accel.errors import TaskCancelled, TaskError
from lib_accel.hosts.webui_lora_files import PASSING
from lib_accel.painter import Painted, Wanted
from lib_accel.pictures import StepClock

_RANK = 16
_SEED = 1
_NAME = "accel-benchmark-{}"
_IN_PROMPT = re.compile(r"<lora:([^:>]+)")
_JOB = "accel-"
_LOOK_EVERY_S = 0.05
_DEVIATION = 1e-3  # of the factors: they take the time of any LoRA, and hardly change the picture


class WebuiPainter:
    """painter.Painter for the webui."""

    def __init__(self, clock: StepClock, stocks_turn: Callable[[], AbstractContextManager[None]]) -> None:
        """`clock`: hears of each sampling step. `stocks_turn`: has us off in a block."""
        self._clock, self._stocks_turn = clock, stocks_turn
        self._checkpoint: Any = None  # of the session

    @contextlib.contextmanager
    def session(self, name: str, pictures: int, check: Callable[[], None]) -> Iterator[None]:
        """Holds the webui's queue, as its own generations do (modules/api/api.py)."""
        with _queue_lock(check), _same_parameters_file():
            shared.state.begin(job=f"{_JOB}{name}")
            shared.state.job_count = pictures
            try:
                self._checkpoint = shared.sd_model
                yield
            finally:
                self._checkpoint = None
                shared.state.end()
                shared.state.textinfo = None

    def interrupt(self) -> None:
        """Ends the picture that is drawn in a session, as the webui's own button does."""
        if str(shared.state.job).startswith(_JOB):
            shared.state.interrupt()

    def tell(self, stage: str) -> None:
        """Shows it beside the webui's progress bar."""
        shared.state.textinfo = f"Accel: {stage}"

    def draw(self, wanted: Wanted, prompt: str = "", *, is_accelerated: bool = True) -> Painted:
        """Draws a picture without scripts, and saves nothing."""
        self._check()
        request = processing.StableDiffusionProcessingTxt2Img(
            sd_model=shared.sd_model,
            prompt=prompt,
            seed=_SEED,
            width=wanted.width,
            height=wanted.height,
            batch_size=wanted.batch_size,
            steps=wanted.steps,
            sampler_name="Euler",
            scheduler="Automatic",
            do_not_save_samples=True,
            do_not_save_grid=True,
        )
        self._clock.reset()
        began = time.perf_counter()
        turn = contextlib.nullcontext() if is_accelerated else self._stocks_turn()
        with turn, contextlib.closing(request):
            processing.process_images(request)
        self._check()
        self._check_alike(prompt)
        return Painted(time.perf_counter() - began, self._clock.step_ms())

    def _check(self) -> None:
        """The webui's own button ends a task as well as ours does."""
        state = shared.state
        if state.interrupted or state.stopping_generation:
            raise TaskCancelled("it was interrupted in the webui")

    def _check_alike(self, prompt: str) -> None:
        """Others may choose another checkpoint, or look for LoRAs anew, while we draw."""
        if shared.sd_model is not self._checkpoint:
            raise TaskError("the checkpoint was changed meanwhile; begin again")
        loaded = {network.name for network in getattr(sys.modules.get("networks"), "loaded_networks", ())}
        if not loaded.issuperset(_IN_PROMPT.findall(prompt)):
            raise TaskError("the webui looked for LoRAs anew meanwhile; begin again")

    @contextlib.contextmanager
    def random_loras(self, count: int) -> Iterator[Sequence[str]]:
        """LoRAs for the attention of the loaded checkpoint's UNet, known to the Lora extension meanwhile."""
        networks = sys.modules.get("networks")
        if networks is None:
            raise TaskError("LoRAs: the webui's Lora extension is not loaded; enable it in Extensions")
        shapes = _shapes_of_attention(shared.sd_model)
        if not shapes:
            raise TaskError("LoRAs: the loaded checkpoint has no attention layers that they could change")
        with tempfile.TemporaryDirectory(prefix="accel-") as folder, _known(networks) as make_known:
            for number in range(count):
                file = Path(folder, f"{_NAME.format(number)}.safetensors")
                save_file(_random_lora(shapes, number), file)
                make_known(file)
            yield [f"<lora:{_NAME.format(number)}:1>" for number in range(count)]

    def device(self) -> torch.device:
        """What the webui draws on."""
        return torch.device(devices.device)


@contextlib.contextmanager
def _queue_lock(check: Callable[[], None]) -> Iterator[None]:
    """The lock once nobody waits for it: requests go first, and waiting can be ended."""
    lock = call_queue.queue_lock
    while not lock.acquire(blocking=False):
        check()
        time.sleep(_LOOK_EVERY_S)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _same_parameters_file() -> Iterator[None]:
    """The file from which the page reads the parameters of the latest picture (modules/processing.py)."""
    file = Path(paths_internal.data_path, "params.txt")
    before = file.read_bytes() if file.is_file() else None
    try:
        yield
    finally:
        if before is not None:
            file.write_bytes(before)
        else:
            file.unlink(missing_ok=True)


def _shapes_of_attention(checkpoint: Any) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the UNet's attention layers, by the names that the Lora extension gives them."""
    layers = getattr(checkpoint, "network_layer_mapping", {})
    return {
        name: (layer.out_features, layer.in_features)
        for name, layer in layers.items()
        if name.startswith("diffusion_model_") and "_attn" in name and isinstance(layer, nn.Linear)
    }


def _random_lora(shapes: dict[str, tuple[int, int]], seed: int) -> dict[str, Tensor]:
    lot = torch.Generator().manual_seed(seed)  # a lot of its own: the webui's random numbers are its own too
    state = {}
    for name, (outputs, inputs) in shapes.items():
        state[f"{name}.lora_down.weight"] = torch.randn(_RANK, inputs, generator=lot) * _DEVIATION
        state[f"{name}.lora_up.weight"] = torch.randn(outputs, _RANK, generator=lot) * _DEVIATION
        state[f"{name}.alpha"] = torch.tensor(float(_RANK))
    return state


@contextlib.contextmanager
def _known(networks: Any) -> Iterator[Callable[[Path], None]]:
    """What makes files known to the Lora extension by their stems, until the block ends (networks.py)."""
    tables = (networks.available_networks, networks.available_network_aliases)
    known: list[str] = []

    def make_known(file: Path) -> None:
        entry = _entry(networks, file)
        for table in tables:
            table[file.stem] = entry
        known.append(file.stem)

    try:
        yield make_known
    finally:
        for name in known:
            for table in (*tables, networks.networks_in_memory):
                table.pop(name, None)
        networks.loaded_networks[:] = [each for each in networks.loaded_networks if each.name not in known]


def _entry(networks: Any, file: Path) -> Any:
    """The extension's own entry, without what it would write into the webui's caches on disk."""
    entry = object.__new__(networks.network.NetworkOnDisk)
    vars(entry).update(
        name=file.stem,
        alias=file.stem,
        filename=str(file),
        metadata={},
        is_safetensors=True,
        hash="0",  # not empty: it would be computed
        shorthash="",
        sd_version=networks.network.SdVersion.Unknown,
        **{PASSING: True},
    )
    return entry
