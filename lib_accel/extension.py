"""The webui extension: wires engine, host, user interface and API together."""

from __future__ import annotations

import logging
import os
import weakref
from typing import Any

from modules import script_callbacks, scripts, shared
from modules.ui_components import InputAccordion

from lib_accel.api.routes import parse_credentials, router
from lib_accel.engine import Engine
from lib_accel.hosts.webui import SETTING, WebuiHost
from lib_accel.options import Options
from lib_accel.ui.accordion import accordion
from lib_accel.ui.settings import settings

_log = logging.getLogger(__name__)
_host = WebuiHost()
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
        """Starts the counters; what an earlier generation asked for is gone, however that ended."""
        _host.request = None
        _engine.begin_generation()

    def process(self, p: Any, enabled: bool = True, *args: Any) -> None:
        """Takes what this generation asks for, now that the host has applied its override_settings."""
        if not enabled:
            _host.request = weakref.ref(p), Options(enabled=False)

    def postprocess(self, p: Any, *args: Any) -> None:
        """Back to the settings."""
        _host.request = None


def _summary() -> str:
    return _engine.report().summary


def _on_model_loaded(model: Any) -> None:
    unet = getattr(getattr(model, "model", None), "diffusion_model", None)
    if unet is None:
        return
    _engine.attach()  # a package of model classes may have been imported since
    _engine.bind(unet)
    _log.info("Accel: %s", _summary())


def _on_ui_settings() -> None:
    for setting in settings():
        default = setting.default
        if setting.option == "enabled" and (shared.cmd_opts.accel_off or os.environ.get("ACCEL_OFF") == "1"):
            default = False
        info = shared.OptionInfo(default, setting.label, setting.component, section=("accel", "Accel"))
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
    if shared.cmd_opts.freeze_settings:
        raise PermissionError("the webui runs with --freeze-settings")
    shared.opts.set(SETTING.format("enabled"), on)
