"""The webui extension: wires engine, host, user interface and API together."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from modules import script_callbacks, scripts, shared
from modules.ui_components import InputAccordion

from lib_accel.api.prompts import PromptWatch
from lib_accel.api.routes import parse_credentials, router
from lib_accel.engine import Engine
from lib_accel.graphs.proof import HOST
from lib_accel.hosts.webui import SETTING, WebuiHost
from lib_accel.hosts.webui_lora import find_network
from lib_accel.hosts.webui_lora_files import KeptNetworks, ReadAhead
from lib_accel.patching import Patch
from lib_accel.ui.accordion import accordion
from lib_accel.ui.settings import settings

_log = logging.getLogger(__name__)


def _count_loading(seconds: float) -> None:
    _engine.generation.load_s += seconds


_OFF_REASON = "the webui was started with --accel-off or ACCEL_OFF=1"

# Without our preload, as after an installation without a restart, the flag does not exist.
_host = WebuiHost(is_off=getattr(shared.cmd_opts, "accel_off", False) or os.environ.get("ACCEL_OFF") == "1")
_engine = Engine(_host)  # one a process: "Reload UI" runs scripts again, but keeps this module
_kept = KeptNetworks(
    lambda: _host.options().lora_cache_mib if _host.options().enabled else 0,
    lambda: shared.sd_model,
    _count_loading,
)
_read_ahead = ReadAhead(find_network)
_loading: Patch | None = None  # of the Lora extension, if that is there


def register() -> None:
    """Attaches the engine and registers the callbacks; the webui clears these before each call."""
    _attach()
    script_callbacks.on_model_loaded(_on_model_loaded)
    script_callbacks.on_script_unloaded(_detach)
    script_callbacks.on_ui_settings(_on_ui_settings)
    script_callbacks.on_app_started(_on_app_started)


def _attach() -> None:
    """Idempotent: a package of model classes, or the Lora extension, may have been imported since."""
    global _loading
    _engine.attach()
    networks = sys.modules.get("networks")
    if networks is not None:
        if _loading is None:
            _loading = Patch(networks, "load_network", _kept.loading)
        _loading.apply()


def _detach() -> None:
    if _loading is not None:
        _loading.undo()
    _kept.clear()
    _engine.detach()


class AccelScript(scripts.Script):  # type: ignore[misc]
    """The part of the extension that takes part in each generation."""

    def title(self) -> str:
        """Name of the script, also in the API's `alwayson_scripts`."""
        return "Accel"

    def show(self, is_img2img: bool) -> Any:
        """In both tabs, always."""
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        """The accordion; its checkbox is the only argument of a generation."""
        tab = "img2img" if is_img2img else "txt2img"
        return accordion(InputAccordion, enabled=True, tab=tab, status=_summary)

    def before_process(self, p: Any, *args: Any) -> None:
        """Starts the counters, unless this generation runs inside another one."""
        if _host.begin_generation(p):
            _engine.begin_generation()

    def process(self, p: Any, enabled: bool = True, *args: Any) -> None:
        """Takes what this generation asks for, now that the host has applied its override_settings."""
        _host.want(p, bool(enabled))
        options = _host.options()
        if not options.enabled or options.code == HOST:
            _host.give_networks_back()

    def postprocess(self, p: Any, *args: Any) -> None:
        """Back to the settings, or to the generation around this one."""
        _host.end_generation(p)


def _summary() -> str:
    try:
        return _engine.report().summary
    except Exception:  # while a model is being loaded on another thread; the accordion must come out
        _log.exception("no status")
        return "no status: see the log"


def _on_model_loaded(model: Any) -> None:
    _attach()
    _kept.clear()  # a network holds on to the layers that it was read for
    _engine.bind(*(each for _, each in _host.models()))
    _log.info("Accel: %s", _summary())


def _on_ui_settings() -> None:
    for setting in settings():
        info = shared.OptionInfo(
            setting.default,
            setting.label,
            setting.component,
            setting.component_args,
            section=("accel", "Accel"),
        )
        shared.opts.add_option(SETTING.format(setting.option), info.info(setting.help))


def _on_app_started(demo: Any, app: Any) -> None:
    may_change = shared.cmd_opts.api or shared.cmd_opts.nowebui
    app.include_router(
        router(
            status=lambda: _engine.report().as_dict(),
            switch=_switch if may_change else None,
            read_ahead=_read_ahead.names,
            forget=_engine.forget_choices,
            credentials=parse_credentials(shared.cmd_opts.api_auth),
        )
    )
    # As the webui itself adds to a running app (modules/initialize_util.py).
    app.middleware_stack = None
    app.add_middleware(PromptWatch, tell=_watch_prompt)
    app.build_middleware_stack()


def _watch_prompt(text: str) -> None:
    try:
        if _host.options().enabled:
            _read_ahead.prompt(text)
    except Exception:  # the request is somebody else's, and must go on
        _log.exception("no reading ahead")


def _switch(on: bool) -> None:
    key = SETTING.format("enabled")
    if on and _host.is_off:
        raise PermissionError(_OFF_REASON)
    try:
        shared.opts.set(key, on)
    except AssertionError as error:  # how the webui refuses a frozen setting (modules/options.py)
        raise PermissionError(f"the webui's settings are frozen: {error}") from None
    if bool(getattr(shared.opts, key)) is not on:
        raise PermissionError(f"the webui did not take {key} = {on}")
