"""The webui extension: wires engine, host, user interface and API together."""

from __future__ import annotations

import logging
import os
from typing import Any

from modules import script_callbacks, scripts, shared
from modules.ui_components import InputAccordion

from lib_accel.api.routes import parse_credentials, router
from lib_accel.engine import Engine
from lib_accel.hosts.webui import SETTING, WebuiHost
from lib_accel.ui.accordion import accordion
from lib_accel.ui.settings import settings

_log = logging.getLogger(__name__)
_OFF_REASON = "the webui was started with --accel-off or ACCEL_OFF=1"

# Without our preload, as after an installation without a restart, the flag does not exist.
_host = WebuiHost(is_off=getattr(shared.cmd_opts, "accel_off", False) or os.environ.get("ACCEL_OFF") == "1")
_engine = Engine(_host)  # one a process: "Reload UI" runs scripts again, but keeps this module


def register() -> None:
    """Attaches the engine and registers the callbacks; the webui clears these before each call."""
    _engine.attach()
    script_callbacks.on_model_loaded(_on_model_loaded)
    script_callbacks.on_script_unloaded(_engine.detach)
    script_callbacks.on_ui_settings(_on_ui_settings)
    script_callbacks.on_app_started(_on_app_started)


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
    _engine.attach()  # a package of model classes may have been imported since
    _engine.bind(*(each for _, each in _host.models()))
    _log.info("Accel: %s", _summary())


def _on_ui_settings() -> None:
    for setting in settings():
        info = shared.OptionInfo(
            setting.default, setting.label, setting.component, section=("accel", "Accel")
        )
        shared.opts.add_option(SETTING.format(setting.option), info.info(setting.help))


def _on_app_started(demo: Any, app: Any) -> None:
    may_change = shared.cmd_opts.api or shared.cmd_opts.nowebui
    app.include_router(
        router(
            status=lambda: _engine.report().as_dict(),
            switch=_switch if may_change else None,
            credentials=parse_credentials(shared.cmd_opts.api_auth),
        )
    )


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
