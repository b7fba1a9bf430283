"""The webui as a host: settings, requests, modes, what it replaced itself, and its networks."""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ldm.modules import attention as ldm_attention
from ldm.modules.diffusionmodules import model as ldm_vae
from torch import nn

from tests.fakes import webui
from tests.fakes.lora_extension import Network, NetworkModuleLora, Networks
from tests.fakes.models import inputs, run, tiny_controlnet, tiny_unet
from tests.fakes.webui_processing import FakeRequest


@pytest.fixture
def host(fakes: SimpleNamespace) -> Any:
    return importlib.import_module("lib_accel.hosts.webui").WebuiHost()


# Settings and requests


def test_settings_that_nobody_registered_have_their_defaults(host: Any) -> None:
    assert host.options().enabled is True


def test_a_saved_setting_counts_before_it_is_registered(fakes: SimpleNamespace, host: Any) -> None:
    fakes.shared.opts.data["accel_enabled"] = False
    assert host.options().enabled is False


@pytest.mark.parametrize(
    ("saved", "enabled"), [(0, False), (1, True), ("", False), ("yes", True), (None, False)]
)
def test_a_saved_value_of_the_wrong_type_is_no_error(
    fakes: SimpleNamespace, host: Any, saved: Any, enabled: bool
) -> None:
    fakes.shared.opts.data["accel_enabled"] = saved
    assert host.options().enabled is enabled


def test_a_job_or_a_turn_that_is_not_over_keeps_it_busy(fakes: SimpleNamespace, host: Any) -> None:
    queue, busy = fakes.call_queue.queue_lock, [host.is_busy()]
    queue.acquire()
    busy.append(host.is_busy())
    queue.release()
    busy.append(host.is_busy())
    fakes.shared.state.job = "txt2img"
    assert [*busy, host.is_busy()] == [False, True, False, True]


def test_unknown_settings_of_the_host_hold_nothing_back(host: Any) -> None:
    assert list(host.stand_aside_reasons()) == []
    assert list(host.attention_reasons()) == []


class Processing(FakeRequest):
    """The webui's object for one generation."""


def _begun(host: Any, p: Processing, *, enabled: bool) -> bool:
    is_outermost: bool = host.begin_generation(p)
    host.want(p, enabled)
    return is_outermost


def test_what_a_generation_asks_for_ends_with_its_processing_object(host: Any) -> None:
    p = Processing()
    assert _begun(host, p, enabled=False)
    assert host.options().enabled is False
    del p
    gc.collect()
    assert host.options().enabled is True


def test_a_generation_inside_another_leaves_the_outer_one_as_it_was(host: Any) -> None:
    outer, inner = Processing(), Processing()
    _begun(host, outer, enabled=False)
    assert not _begun(host, inner, enabled=True)
    assert host.options().enabled is True
    host.end_generation(inner)
    assert host.options().enabled is False


def test_a_generation_that_never_ended_is_forgotten_by_the_next_job(
    fakes: SimpleNamespace, host: Any
) -> None:
    failed, following = Processing(), Processing()
    _begun(host, failed, enabled=False)
    fakes.shared.state.time_start = 2.0
    assert _begun(host, following, enabled=True)
    assert host.options().enabled is True
    host.end_generation(following)
    assert host.options().enabled is True


# Modes


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("shared.opts.data.lora_functional", True, "lora_functional"),
        ("devices.unet_needs_upcast", True, "--upcast-sampling"),
        ("devices.fp8", True, "fp8"),
        ("sd_unet.current_unet", object(), "another extension's UNet"),
        ("shared.state.job", "train-embedding", "trained"),
        ("shared.state.job", "train-hypernetwork", "trained"),
    ],
)
def test_modes_in_which_we_stand_aside(
    fakes: SimpleNamespace, host: Any, path: str, value: Any, reason: str
) -> None:
    _set(fakes, path, value)
    (given,) = host.stand_aside_reasons()
    assert reason in given
    assert list(host.attention_reasons()) == []


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("shared.loaded_hypernetworks", [object()], "hypernetwork"),
        ("shared.opts.data.upcast_attn", True, "upcast_attn"),
        ("shared.opts.data.hypertile_enable_unet", True, "HyperTile"),
        ("shared.opts.data.hypertile_enable_unet_secondpass", True, "HyperTile"),
    ],
)
def test_modes_in_which_attention_stays_with_the_host(
    fakes: SimpleNamespace, host: Any, path: str, value: Any, reason: str
) -> None:
    _set(fakes, path, value)
    (given,) = host.attention_reasons()
    assert reason in given
    assert list(host.stand_aside_reasons()) == []


def _set(fakes: SimpleNamespace, path: str, value: Any) -> None:
    *steps, last = path.split(".")
    owner: Any = fakes
    for step in steps:
        owner = getattr(owner, step)
    if isinstance(owner, dict):
        owner[last] = value
    else:
        setattr(owner, last, value)


def test_manual_cast_is_seen_by_what_it_leaves_on_linear(monkeypatch: pytest.MonkeyPatch, host: Any) -> None:
    monkeypatch.setattr(nn.Linear, "org_forward", nn.Linear.forward, raising=False)
    (reason,) = host.stand_aside_reasons()
    assert "manual cast" in reason


# Trust


_CONDFUNC = """
class CondFunc:
    def __new__(cls, orig_func, sub_func, cond_func):
        self = super().__new__(cls)
        self.__init__(orig_func, sub_func, cond_func)
        return lambda *args, **kwargs: self(*args, **kwargs)
    def __init__(self, orig_func, sub_func, cond_func):
        self.__orig_func = orig_func
        self.__sub_func = sub_func
        self.__cond_func = cond_func
    def __call__(self, *args, **kwargs):
        return self.__sub_func(self.__orig_func, *args, **kwargs)
def condfunc(orig_func, sub_func):
    return CondFunc(orig_func, sub_func, None)
"""
_ORIGINAL = ldm_attention.SpatialTransformer.forward
condfunc = webui.function_of("modules.sd_hijack_utils", _CONDFUNC, "condfunc")


def _own(module: str) -> Any:
    return webui.function_of(module, "def forward(*args, **kwargs): pass", "forward")


def _wrapper_of_hypertile(wrapped: Any) -> Any:
    source = """
def make(inner):
    from functools import wraps
    @wraps(inner)
    def wrapper(*args, **kwargs):
        return inner(*args, **kwargs)
    return wrapper
"""
    return webui.function_of("hypertile", source, "make")(wrapped)


TRUSTED = {
    "original": _ORIGINAL,
    "torch": nn.Linear.forward,
    "attention of the host": _own("modules.sd_hijack_optimizations"),
    "attention without optimization": _own("modules.hypernetworks.hypernetwork"),
    "UNet that asks first": _own("modules.sd_unet"),
    "Lora's layer": _own("networks"),
    "CondFunc of the host": condfunc(_ORIGINAL, _own("modules.sd_hijack_unet")),
    "CondFunc around a CondFunc": condfunc(
        condfunc(_ORIGINAL, _own("modules.sd_hijack_unet")), _own("modules.sd_hijack_unet")
    ),
    "HyperTile": _wrapper_of_hypertile(_ORIGINAL),
    "HyperTile around a bound method": _wrapper_of_hypertile(
        ldm_attention.CrossAttention(8, heads=1, dim_head=8).forward
    ),
}
FOREIGN = {
    "foreign": _own("scripts.some_extension"),
    "foreign of no module": eval("lambda self, x: x", {}),
    "builtin": len,
    "training's checkpoints": _own("modules.sd_hijack_checkpoint"),
    "module of a like name": _own("ldmx.modules"),
    "CondFunc with a foreign function": condfunc(_ORIGINAL, _own("scripts.some_extension")),
    "CondFunc around a foreign function": condfunc(
        _own("scripts.some_extension"), _own("modules.sd_hijack_unet")
    ),
    "lambda that is no CondFunc": _own("modules.sd_hijack_utils"),
    "HyperTile around a foreign function": _wrapper_of_hypertile(_own("scripts.some_extension")),
    "HyperTile without what it wraps": _own("hypertile"),
    "HyperTile around a VAE's attention": _wrapper_of_hypertile(ldm_vae.AttnBlock(32).forward),
}


@pytest.mark.parametrize("name", TRUSTED)
def test_what_the_host_replaced_itself_is_trusted(host: Any, name: str) -> None:
    assert host.trusts(TRUSTED[name])


@pytest.mark.parametrize("name", FOREIGN)
def test_what_others_replaced_is_not_trusted(host: Any, name: str) -> None:
    assert not host.trusts(FOREIGN[name])


# Networks


@pytest.fixture
def networks(fakes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Networks:
    module = Networks(Network("a", 0.5, 1.0, None), Network("b", 1.0, -0.25, 8, mtime=2.0))
    monkeypatch.setitem(sys.modules, "networks", module)
    return module


def test_wanted_networks_are_what_the_host_compares_and_more(host: Any, networks: Networks) -> None:
    marks = [("a", 0.5, 1.0, None), ("b", 1.0, -0.25, 8)]
    assert host.wanted_networks() == (((marks[0], 1.0), False), ((marks[1], 2.0), False))
    assert host.network_mark == "network_current_names"


def test_no_networks_are_wanted_without_the_lora_extension(host: Any) -> None:
    assert host.wanted_networks() == ()
    host.apply_networks([nn.Linear(1, 1)])


@pytest.mark.parametrize("exact", [False, True])
def test_networks_are_merged_as_the_setting_says(
    fakes: SimpleNamespace, host: Any, networks: Networks, exact: bool
) -> None:
    fakes.shared.opts.data["accel_exact_loras"] = exact
    layer: Any = nn.Linear(2, 2)
    layer.network_layer_name = "layer"
    factors = {"lora_up.weight": torch.ones(2, 1), "lora_down.weight": torch.ones(1, 2)}
    networks.loaded_networks[0].modules["layer"] = NetworkModuleLora(networks.loaded_networks[0], factors)
    before, wanted = layer.weight.clone(), host.wanted_networks()
    host.apply_networks([layer])
    assert networks.writes == int(exact)
    torch.testing.assert_close(layer.weight, before + 1)
    fakes.shared.opts.data["accel_exact_loras"] = not exact
    assert host.wanted_networks() != wanted


def test_the_extension_keeps_and_counts_what_the_host_loads(
    fakes: SimpleNamespace, networks: Networks, extension: Any, tmp_path: Path
) -> None:
    (tmp_path / "c.safetensors").write_bytes(bytes(100))
    on_disk = networks.add_file("c", tmp_path / "c.safetensors")
    vars(fakes.shared).update(sd_model=nn.Linear(1, 1))
    assert networks.load_network("c", on_disk) is networks.load_network("c", on_disk)
    assert networks.reads == ["c"]
    assert extension._engine.generation.load_s > 0
    fakes.shared.opts.data["accel_enabled"] = False
    networks.load_network("c", on_disk)
    networks.load_network("c", on_disk)
    assert networks.reads == ["c", "c", "c"]
    fakes.script_callbacks.registered["on_script_unloaded"]()
    assert networks.load_network.__self__ is networks


# Models


def test_models_are_the_unet_and_the_cached_control_models(fakes: SimpleNamespace, host: Any) -> None:
    assert list(host.models()) == []
    unet, control = nn.Linear(1, 1), nn.Linear(1, 1)
    fakes.sd_models.model_data.sd_model = SimpleNamespace(model=SimpleNamespace(diffusion_model=unet))
    script = type("Script", (), {"__module__": "controlnet.py"})
    script.model_cache = {"canny": SimpleNamespace(model=control), "broken": SimpleNamespace(model=None)}
    fakes.scripts.scripts_data.append(SimpleNamespace(script_class=script))
    assert list(host.models()) == [("UNet", unet), ("ControlNet canny", control)]


def test_models_are_the_vae_and_the_text_encoders_too(fakes: SimpleNamespace, host: Any) -> None:
    vae, encoder, encoders = (nn.Linear(1, 1) for _ in range(3))
    checkpoint = SimpleNamespace(first_stage_model=vae, cond_stage_model=encoder)
    fakes.sd_models.model_data.sd_model = checkpoint
    assert list(host.models()) == [("VAE", vae), ("text encoder", encoder)]
    checkpoint.cond_stage_model, checkpoint.conditioner = None, encoders
    assert list(host.models()) == [("VAE", vae), ("text encoders", encoders)]


def test_sdxl_names_its_text_encoders_twice_and_they_are_listed_once(
    fakes: SimpleNamespace, host: Any
) -> None:
    encoders = nn.ModuleList([nn.Linear(1, 1)])
    for second_name in (encoders, encoders[0]):  # as the base and the refiner have it (modules/sd_hijack.py)
        fakes.sd_models.model_data.sd_model = SimpleNamespace(
            cond_stage_model=second_name, conditioner=encoders
        )
        assert list(host.models()) == [("text encoders", encoders)]


# The extension


def test_the_extension_registers_what_the_webui_calls(fakes: SimpleNamespace, extension: Any) -> None:
    assert set(fakes.script_callbacks.registered) == {
        "on_model_loaded",
        "on_script_unloaded",
        "on_before_ui",
        "on_ui_settings",
        "on_ui_tabs",
        "on_app_started",
        "on_cfg_denoiser",
    }


def test_a_loaded_model_is_bound_and_accelerated(fakes: SimpleNamespace, extension: Any) -> None:
    unet = tiny_unet()
    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=unet))
    fakes.sd_models.model_data.sd_model = model
    fakes.script_callbacks.registered["on_model_loaded"](model)
    run(unet, inputs())
    report = extension._engine.report()
    assert (report.enabled, report.generation.host, report.generation.direct > 0) == (True, 0, True)
    assert [each.name for each in report.models] == ["UNet"]


def test_a_model_without_a_unet_is_no_error(fakes: SimpleNamespace, extension: Any) -> None:
    fakes.script_callbacks.registered["on_model_loaded"](SimpleNamespace())


def test_unloading_and_registering_again_is_attached(fakes: SimpleNamespace, extension: Any) -> None:
    for _ in range(2):
        fakes.script_callbacks.registered["on_script_unloaded"]()
        extension.register()
    control, given = tiny_controlnet(), inputs()
    import torch

    with torch.no_grad():
        control(given.x, torch.randn(2, 3, 64, 64), given.timesteps, given.context)
    assert extension._engine.generation.direct > 0


def test_the_accordion_off_switches_one_generation_off(extension: Any) -> None:
    script, p, inner = extension.AccelScript(), Processing(), Processing()
    script.before_process(p)
    script.process(p, False)
    assert extension._host.options().enabled is False
    script.before_process(inner)
    assert extension._host.options().enabled is True


def test_the_accordion_on_leaves_the_settings(fakes: SimpleNamespace, extension: Any) -> None:
    script, p = extension.AccelScript(), Processing()
    fakes.shared.opts.data["accel_enabled"] = False
    script.before_process(p)
    script.process(p, True)
    assert extension._host.options().enabled is False


def test_a_generation_off_ends_with_it(extension: Any) -> None:
    script, p = extension.AccelScript(), Processing()
    script.before_process(p)
    script.process(p, False)
    script.postprocess(p, None)
    assert extension._host.options().enabled is True


def test_the_script_is_always_there_with_two_arguments(fakes: SimpleNamespace, extension: Any) -> None:
    script = extension.AccelScript()
    assert script.title() == "Accel"
    assert script.show(False) is fakes.scripts.AlwaysVisible
    ids = [each.kwargs["elem_id"] for each in script.ui(True)]
    assert ids == ["accel_img2img_enabled", "accel_img2img_compare"]


def test_the_accordion_shows_the_status_and_refreshes_it(fakes: SimpleNamespace, extension: Any) -> None:
    extension.AccelScript().ui(False)
    (line,) = (each for each in fakes.gradio.made if type(each).__name__ == "HTML")
    (button,) = (each for each in fakes.gradio.made if type(each).__name__ == "Button")
    assert "waiting for a model" in line.args[0]
    fakes.shared.opts.data["accel_enabled"] = False
    assert ">off<" in button.clicked["fn"]()


def test_settings_are_registered_with_their_defaults(fakes: SimpleNamespace, extension: Any) -> None:
    fakes.script_callbacks.registered["on_ui_settings"]()
    labels = fakes.shared.opts.data_labels
    assert labels["accel_enabled"].default is True
    assert labels["accel_enabled"].section == ("accel", "Accel")
    assert labels["accel_enabled"].comment


def test_the_code_of_blocks_is_chosen_from_a_list(fakes: SimpleNamespace, extension: Any) -> None:
    fakes.script_callbacks.registered["on_ui_settings"]()
    setting = fakes.shared.opts.data_labels["accel_code"]
    assert setting.default == "auto"
    assert setting.component_args["choices"] == ["auto", "direct", "measured", "compiled", "host"]


@pytest.mark.parametrize(
    ("saved", "expected"), [("compiled", "compiled"), ("fastest", "auto"), (None, "auto")]
)
def test_a_saved_code_that_does_not_exist_counts_as_the_default(
    fakes: SimpleNamespace, extension: Any, saved: Any, expected: str
) -> None:
    fakes.shared.opts.accel_code = saved
    assert extension._host.options().code == expected


def test_what_is_measured_is_kept_beside_the_webuis_caches(
    monkeypatch: pytest.MonkeyPatch, fakes: SimpleNamespace, extension: Any, tmp_path: Path
) -> None:
    monkeypatch.delenv("ACCEL_CACHE_DIR", raising=False)
    fakes.paths_internal.data_path = str(tmp_path)
    assert extension._host.cache_folder() == tmp_path / "cache" / "accel"
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "other"))
    assert extension._host.cache_folder() == tmp_path / "other"


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_started_off_it_stays_off_and_says_so(
    monkeypatch: pytest.MonkeyPatch, fakes: SimpleNamespace, how: str
) -> None:
    if how == "flag":
        fakes.shared.cmd_opts.accel_off = True
    else:
        monkeypatch.setenv("ACCEL_OFF", "1")
    sys.modules.pop("lib_accel.extension", None)
    extension = importlib.import_module("lib_accel.extension")
    extension.register()
    answer = _client(fakes).post("/accel/v1/enable")
    assert (answer.status_code, extension._host.options().enabled) == (403, False)
    fakes.script_callbacks.registered["on_script_unloaded"]()
    assert "--accel-off" in answer.json()["detail"]


def test_without_preload_there_is_no_flag(fakes: SimpleNamespace) -> None:
    del fakes.shared.cmd_opts.accel_off
    sys.modules.pop("lib_accel.extension", None)
    assert importlib.import_module("lib_accel.extension")._host.options().enabled is True


@pytest.mark.parametrize(
    ("api", "nowebui", "allowed"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_the_routes_that_change_settings_need_the_api(
    fakes: SimpleNamespace, extension: Any, api: bool, nowebui: bool, allowed: bool
) -> None:
    fakes.shared.cmd_opts.api, fakes.shared.cmd_opts.nowebui = api, nowebui
    client = _client(fakes)
    assert client.get("/accel/v1/status").status_code == 200
    assert client.post("/accel/v1/disable").status_code == (200 if allowed else 404)
    assert fakes.shared.opts.data.get("accel_enabled", True) is not allowed


def test_frozen_settings_are_not_changed(fakes: SimpleNamespace, extension: Any) -> None:
    fakes.shared.cmd_opts.freeze_settings = True
    answer = _client(fakes).post("/accel/v1/disable")
    assert answer.status_code == 403
    assert "frozen" in answer.json()["detail"]
    assert fakes.shared.opts.data == {}


def test_the_routes_ask_for_the_api_password(fakes: SimpleNamespace, extension: Any) -> None:
    fakes.shared.cmd_opts.api_auth = "ann:secret,bob:pass:word"
    client = _client(fakes)
    assert client.get("/accel/v1/status").status_code == 401
    assert client.get("/accel/v1/status", auth=("bob", "pass:word")).status_code == 200


def _client(fakes: SimpleNamespace) -> Any:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    app = FastAPI()
    fakes.script_callbacks.registered["on_app_started"](None, app)
    return TestClient(app)
