"""Pictures for warm-up and benchmark, in the webui's own process."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lib_accel.errors import TaskCancelled, TaskError
from lib_accel.painter import Wanted
from lib_accel.pictures import StepClock

WANTED = Wanted(width=128, height=64, batch_size=2, steps=6)


@pytest.fixture
def painter(fakes: SimpleNamespace) -> Any:
    clock = StepClock()
    fakes.script_callbacks.on_cfg_denoiser(lambda params: clock.note(params.sampling_step))
    return importlib.import_module("lib_accel.hosts.webui_painting").WebuiPainter(clock, _turns)


def _goes_on() -> None:
    """Of a task that nobody cancels."""


@contextlib.contextmanager
def _turns() -> Iterator[None]:
    """Stock's turn, noted."""
    _stocks.append(True)
    yield
    _stocks.append(False)


_stocks: list[bool] = []


@pytest.fixture
def networks(fakes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Any:
    on_disk = type("NetworkOnDisk", (), {})
    network = SimpleNamespace(NetworkOnDisk=on_disk, SdVersion=SimpleNamespace(Unknown=1))
    module = ModuleType("networks")
    vars(module).update(
        network=network,
        available_networks={"style": 1},
        available_network_aliases={"style": 1},
        networks_in_memory={},
        loaded_networks=[SimpleNamespace(name="style")],
    )
    monkeypatch.setitem(__import__("sys").modules, "networks", module)
    fakes.shared.sd_model.network_layer_mapping = {
        "diffusion_model_input_blocks_1_1_attn1_to_q": nn.Linear(8, 4),
        "diffusion_model_input_blocks_1_1_proj_in": nn.Conv2d(8, 8, 1),
        "transformer_text_model_attn_q_proj": nn.Linear(8, 8),
    }
    return module


def test_a_session_holds_the_queue_and_is_a_job(fakes: SimpleNamespace, painter: Any) -> None:
    queue, state = fakes.call_queue.queue_lock, fakes.shared.state
    with painter.session("warm-up", 3, _goes_on):
        assert (queue.is_held, state.job, state.job_count) == (True, "accel-warm-up", 3)
        painter.tell("drawing")
        assert state.textinfo == "Accel: drawing"
    assert (queue.is_held, state.job, state.textinfo) == (False, "", None)


def test_a_session_waits_until_the_queue_is_free(fakes: SimpleNamespace, painter: Any) -> None:
    queue, looks = fakes.call_queue.queue_lock, []
    queue.acquire()

    def check() -> None:
        looks.append(1)
        if len(looks) == 3:
            queue.release()

    with painter.session("warm-up", 1, check):
        assert (queue.is_held, len(looks)) == (True, 3)


def test_waiting_for_the_queue_can_be_ended(fakes: SimpleNamespace, painter: Any) -> None:
    fakes.call_queue.queue_lock.acquire()

    def check() -> None:
        raise TaskCancelled("by a test")

    with pytest.raises(TaskCancelled), painter.session("warm-up", 1, check):
        pass
    assert (fakes.call_queue.queue_lock.is_held, fakes.shared.state.jobs) == (True, [])


def test_a_session_ends_after_an_error(fakes: SimpleNamespace, painter: Any) -> None:
    with pytest.raises(ZeroDivisionError), painter.session("warm-up", 1, _goes_on):
        raise ZeroDivisionError
    assert (fakes.call_queue.queue_lock.is_held, fakes.shared.state.job) == (False, "")


@pytest.mark.parametrize("is_accelerated", [True, False])
def test_a_picture_is_drawn_as_wanted_and_not_saved(
    fakes: SimpleNamespace, painter: Any, is_accelerated: bool
) -> None:
    _stocks.clear()
    with painter.session("a test", 1, _goes_on):
        painted = painter.draw(WANTED, "a prompt", is_accelerated=is_accelerated)
    ((request, _),) = fakes.processing.drawn
    assert (request.width, request.height, request.batch_size, request.steps) == (128, 64, 2, 6)
    assert (request.do_not_save_samples, request.do_not_save_grid, request.is_closed) == (True, True, True)
    assert (request.prompt, request.override_settings) == ("a prompt", {})
    assert _stocks == ([] if is_accelerated else [True, False])
    assert painted.step_ms > 0


@pytest.mark.parametrize("button", ["interrupted", "stopping_generation"])
def test_the_webuis_own_buttons_end_it(fakes: SimpleNamespace, painter: Any, button: str) -> None:
    setattr(fakes.shared.state, button, True)
    with pytest.raises(TaskCancelled, match="interrupted in the webui"):
        painter.draw(WANTED)
    assert fakes.processing.drawn == []


def test_random_loras_fit_the_attention_of_the_unet(painter: Any, networks: Any) -> None:
    with painter.random_loras(2) as tags:
        assert tags == ["<lora:accel-benchmark-0:1>", "<lora:accel-benchmark-1:1>"]
        entry = networks.available_network_aliases["accel-benchmark-1"]
        state = load_file(entry.filename)
    layer = "diffusion_model_input_blocks_1_1_attn1_to_q"
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes == {
        f"{layer}.lora_down.weight": (16, 8),
        f"{layer}.lora_up.weight": (4, 16),
        f"{layer}.alpha": (),
    }


def test_random_loras_leave_nothing_behind(painter: Any, networks: Any) -> None:
    with painter.random_loras(1):
        entry = networks.available_networks["accel-benchmark-0"]
        networks.loaded_networks.append(SimpleNamespace(name="accel-benchmark-0"))
        assert entry.accel_is_passing
        networks.networks_in_memory["accel-benchmark-0"] = 1
    assert not Path(entry.filename).exists()
    assert set(networks.available_networks) == set(networks.available_network_aliases) == {"style"}
    assert [each.name for each in networks.loaded_networks] == ["style"]
    assert networks.networks_in_memory == {}


def test_random_loras_do_not_advance_the_random_state(painter: Any, networks: Any) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with painter.random_loras(2):
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_without_the_lora_extension_there_is_advice(painter: Any) -> None:
    with pytest.raises(TaskError, match="enable it in Extensions"), painter.random_loras(1):
        pass


def test_the_device_is_named(painter: Any) -> None:
    assert str(painter.device()) == "cpu"


def test_another_checkpoint_ends_it(fakes: SimpleNamespace, painter: Any) -> None:
    with painter.session("a test", 1, _goes_on):
        fakes.shared.sd_model = SimpleNamespace()
        with pytest.raises(TaskError, match="the checkpoint was changed meanwhile"):
            painter.draw(WANTED)


def test_loras_that_are_gone_end_it(painter: Any, networks: Any) -> None:
    with painter.session("a test", 1, _goes_on), pytest.raises(TaskError, match="looked for LoRAs anew"):
        painter.draw(WANTED, "<lora:accel-benchmark-0:1>")


def test_a_checkpoint_without_attention_is_refused(
    fakes: SimpleNamespace, painter: Any, networks: Any
) -> None:
    fakes.shared.sd_model.network_layer_mapping = {}
    with pytest.raises(TaskError, match="no attention layers"), painter.random_loras(1):
        pass


@pytest.mark.parametrize("before", [b"of the user's picture", None])
def test_the_users_latest_parameters_stay(
    fakes: SimpleNamespace, painter: Any, tmp_path: Path, before: bytes | None
) -> None:
    fakes.paths_internal.data_path = str(tmp_path)
    file = tmp_path / "params.txt"
    if before is not None:
        file.write_bytes(before)
    with painter.session("a test", 1, _goes_on):
        file.write_bytes(b"of the benchmark's picture")
    assert (file.read_bytes() if file.exists() else None) == before


def test_only_a_picture_of_a_task_is_interrupted(fakes: SimpleNamespace, painter: Any) -> None:
    fakes.shared.state.job = "somebody's"
    painter.interrupt()
    assert not fakes.shared.state.interrupted
    with painter.session("a test", 1, _goes_on):
        painter.interrupt()
        assert fakes.shared.state.interrupted
