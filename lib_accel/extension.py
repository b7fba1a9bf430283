"""The webui extension: wires engine, host, user interface and API together."""

from __future__ import annotations

import logging
import os
import platform
import sys
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from modules import script_callbacks, scripts, shared
from modules.ui_components import InputAccordion

from lib_accel import __version__
from lib_accel.api.prompts import PromptWatch
from lib_accel.api.routes import parse_credentials, router
from lib_accel.device import device_name
from lib_accel.engine import Engine
from lib_accel.errors import TaskError
from lib_accel.graphs.proof import HOST
from lib_accel.handshake import digest_of_sources
from lib_accel.hosts.webui import SETTING, WebuiHost, find_extensions, find_version
from lib_accel.hosts.webui_axis import add_axis
from lib_accel.hosts.webui_comparison import Stock, add_to, draw_stock, show_instead, was_cut_short, why_not
from lib_accel.hosts.webui_journal import Journal, control_units, merged_networks
from lib_accel.hosts.webui_lora import find_network
from lib_accel.hosts.webui_lora_files import KeptNetworks, ReadAhead
from lib_accel.hosts.webui_memory import making_room
from lib_accel.hosts.webui_painting import WebuiPainter
from lib_accel.operations import Operations
from lib_accel.options import CODES
from lib_accel.painter import Wanted
from lib_accel.patching import Patch
from lib_accel.pictures import Picture, Pictures, StepClock, compared
from lib_accel.ui.accordion import accordion
from lib_accel.ui.settings import settings
from lib_accel.ui.tab import Actions, tab

T = TypeVar("T")

_log = logging.getLogger(__name__)
_console = logging.getLogger("lib_accel.pictures")  # one line a generation

_LOADED = digest_of_sources()
_ENABLED = SETTING.format("enabled")
_INFOTEXT = "Accel"


def _count_loading(seconds: float) -> None:
    _engine.generation.load_s += seconds


# Without our preload, as after an installation without a restart, the flag does not exist.
_host = WebuiHost(is_off=getattr(shared.cmd_opts, "accel_off", False) or os.environ.get("ACCEL_OFF") == "1")
_engine = Engine(_host)  # one a process: "Reload UI" runs scripts again, but keeps this module
_kept = KeptNetworks(
    lambda: _host.options().lora_cache_mib if _host.options().enabled else 0,
    lambda: shared.sd_model,
    _count_loading,
)
_read_ahead = ReadAhead(find_network)

# Functions that are ours while we are attached, by the module they are in, which may be missing.
_PATCHED: Mapping[str, Callable[[Any], Patch]] = {
    "networks": lambda module: Patch(module, "load_network", _kept.loading),
    "modules.upscaler": lambda module: Patch(module.Upscaler, "upscale", making_room(_engine.release_memory)),
}
_patches: dict[str, Patch] = {}  # by the same modules
_clock, _pictures = StepClock(), Pictures()
_journal = Journal(_clock)


class _Networks:
    """operations.Networks of the webui."""

    merged = staticmethod(merged_networks)
    kept_bytes = staticmethod(_kept.kept_bytes)


def _surroundings() -> Mapping[str, str]:
    return {
        "sd-webui-accel": __version__,
        "webui": find_version(),
        "Python": platform.python_version(),
        "system": platform.system(),
        "torch": torch.__version__,
        "device": device_name(_painter.device()),
        "extensions": ", ".join(find_extensions()),
    }


_painter = WebuiPainter(_clock, _host.stocks_turn)
_operations = Operations(
    _engine,
    _host,
    painter=_painter,
    networks=_Networks(),
    pictures=_pictures,
    surroundings=_surroundings,
)


def register() -> None:
    """Attaches the engine and registers the callbacks; the webui clears these before each call.

    After an update without a restart this is still the module of before, beside new files, of which it may
    load some later: then everything runs as the webui's own, and the status says so.
    """
    if digest_of_sources() != _LOADED:
        _host.hold_back = f"the extension was updated (from {__version__}): restart the webui"
    _attach()
    _show_on_console()
    script_callbacks.on_model_loaded(_on_model_loaded)
    script_callbacks.on_script_unloaded(_detach)
    script_callbacks.on_before_ui(_on_before_ui)
    script_callbacks.on_ui_settings(_on_ui_settings)
    script_callbacks.on_ui_tabs(_on_ui_tabs)
    script_callbacks.on_app_started(_on_app_started)
    script_callbacks.on_cfg_denoiser(_on_cfg_denoiser)


def _attach() -> None:
    """Idempotent: a package of model classes, or the Lora extension, may have been imported since."""
    _engine.attach()
    for name, patched in _PATCHED.items():
        module = sys.modules.get(name)
        if module is not None:
            if name not in _patches:
                _patches[name] = patched(module)
            _patches[name].apply()


def _detach() -> None:
    _operations.cancel()
    for patch in _patches.values():
        patch.undo()
    _kept.clear()
    _engine.detach()


def _show_on_console() -> None:
    """The webui shows no messages of this level unless it was started with --loglevel."""
    if not _console.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        _console.addHandler(handler)
        _console.setLevel(logging.INFO)
        _console.propagate = False  # a handler of the root, should one come later, would repeat it


class AccelScript(scripts.Script):  # type: ignore[misc]
    """The part of the extension that takes part in each generation."""

    # The request that is written down. Weak: after an error nobody says that it has ended.
    _outermost: weakref.ref[Any] | None = None

    def title(self) -> str:
        """Name of the script, also in the API's `alwayson_scripts`."""
        return "Accel"

    def show(self, is_img2img: bool) -> Any:
        """In both tabs, always."""
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        """The accordion; its checkboxes are the arguments of a generation."""
        tab = "img2img" if is_img2img else "txt2img"
        return accordion(InputAccordion, enabled=True, tab=tab, status=_summary)

    def before_process(self, p: Any, enabled: bool = True, compare: bool = False, *args: Any) -> None:
        """Starts the counters, unless this generation runs inside another one."""
        if not _host.begin_generation(p):
            return
        self._outermost = weakref.ref(p)
        if compare and enabled:
            _draw_stock(p)
        _engine.begin_generation()
        _journal.begin()

    def process(self, p: Any, enabled: bool = True, compare: bool = False, *args: Any) -> None:
        """Takes what this generation asks for, now that the host has applied its override_settings."""
        _host.want(p, bool(enabled))
        options = _host.options()
        if not options.enabled or options.code == HOST or _host.hold_back is not None:
            _host.give_networks_back()
        elif options.infotext:
            p.extra_generation_params[_INFOTEXT] = f"{__version__} {options.code}"

    def post_sample(self, p: Any, *args: Any) -> None:
        """Counts ControlNet units, which are forgotten before `postprocess`."""
        if self._is_outermost(p):
            _engine.generation.control_models = control_units(p)

    def postprocess(self, p: Any, processed: Any = None, *args: Any) -> None:
        """Writes the generation down, and goes back to the settings or to the generation around this one."""
        try:
            if self._is_outermost(p):
                self._outermost = None
                _write_down(p, processed)
        finally:
            _host.end_generation(p)

    def _is_outermost(self, p: Any) -> bool:
        return self._outermost is not None and self._outermost() is p


def _draw_stock(p: Any) -> None:
    """Keeps what stock makes of a request with the request, or says in its comments why there is nothing."""
    reasons = _host.stand_aside_reasons()
    reason = why_not(p) or (reasons[0] if reasons else None)
    if not (_host.options().enabled and p.override_settings.get(_ENABLED, True)):
        reason = "acceleration is off"
    if reason is None:
        try:
            p.accel_stock = draw_stock(p, _clock, _host.stocks_turn)
        except Exception as error:  # of stock, which may need more memory: ours must come out
            _log.exception("no comparison")
            reason = f"stock failed: {type(error).__name__}: {error}"
    if reason is not None:
        p.comment(f"Accel: not compared, {reason}")


def _write_down(p: Any, processed: Any) -> None:
    is_accelerated = _host.options().enabled
    picture = _journal.end(p, _engine.generation.copy(), is_accelerated=is_accelerated)
    stock: Stock | None = getattr(p, "accel_stock", None)
    if stock is not None and not stock.is_whole:
        show_instead(processed, stock)
    elif stock is not None and is_accelerated and not was_cut_short():
        picture = compared(picture, *add_to(processed, p, stock, picture.step_ms))
    _pictures.add(picture)
    _console.info("Accel: %s", _line(picture))


def _line(picture: Picture) -> str:
    speed = "" if picture.its_per_s is None else f" at {picture.its_per_s:.2f} it/s"
    return f"{picture.steps} steps{speed}, {picture.seconds:.2f} s · {_summary()}"


def _told(ask: Callable[[], T], otherwise: T) -> T:
    """What we have to say, for a page that must come out while a model is being loaded on another thread."""
    try:
        return ask()
    except Exception:  # of a model that changes while it is walked; the next one who asks is told
        _log.exception("no status")
        return otherwise


def _summary() -> str:
    return _told(_operations.summary, "no status: see the log")


def _status() -> Mapping[str, Any]:
    return _told(_operations.status, {})


def _report() -> str:
    return _told(_operations.report, "no report: see the log")


def _on_cfg_denoiser(params: Any) -> None:
    _clock.note(params.sampling_step)


def _on_model_loaded(model: Any) -> None:
    _attach()
    _kept.clear()  # a network holds on to the layers that it was read for
    _engine.release_memory()  # the graphs of a model that is gone, or has other weights
    _engine.bind(*(each for _, each in _host.models()))
    _log.info("Accel: %s", _summary())


def _on_before_ui() -> None:
    add_axis(scripts.scripts_data, CODES, SETTING)


def _on_ui_settings() -> None:
    for setting in settings():
        info = shared.OptionInfo(
            setting.default,
            setting.label,
            setting.component,
            setting.component_args,
            section=("accel", "Accel"),
            category_id="sd",  # among the pages that the webui has for Stable Diffusion
        )
        shared.opts.add_option(SETTING.format(setting.option), info.info(setting.help))


def _on_ui_tabs() -> list[tuple[Any, str, str]]:
    actions = Actions(
        status=_status,
        report=_report,
        warm_up=lambda width, height, batch_size: _started(
            lambda: _operations.start_warm_up(Wanted(width=width, height=height, batch_size=batch_size))
        ),
        benchmark=lambda width, height, steps: _started(
            lambda: _operations.start_benchmark(Wanted(width=width, height=height, steps=steps))
        ),
        cancel=lambda: "it ends soon" if _operations.cancel() else "nothing is running",
        clear_cache=lambda: f"{_operations.forget()} choices forgotten",
        turn_off_until_restart=_turn_off_until_restart,
    )
    return [(tab(actions), "Accel", "accel")]


def _started(start: Any) -> str:
    try:
        start()
    except TaskError as error:
        return str(error)
    return "started"


def _turn_off_until_restart() -> str:
    if shared.cmd_opts.freeze_settings:
        return "the webui was started with --freeze-settings"
    _host.is_off = True
    return "off until the webui is restarted"


def _on_app_started(demo: Any, app: Any) -> None:
    may_change = shared.cmd_opts.api or shared.cmd_opts.nowebui
    app.include_router(
        router(
            _operations,
            switch=_switch if may_change else None,
            read_ahead=_read_ahead.names,
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
    if on and _host.is_off:
        raise PermissionError(
            "acceleration is off until the webui is restarted: it was started with --accel-off or "
            "ACCEL_OFF=1, or somebody turned it off in the tab Accel"
        )
    try:
        shared.opts.set(_ENABLED, on)
    except AssertionError as error:  # how the webui refuses a frozen setting (modules/options.py)
        raise PermissionError(f"the webui's settings are frozen: {error}") from None
    if bool(getattr(shared.opts, _ENABLED)) is not on:
        raise PermissionError(f"the webui did not take {_ENABLED} = {on}")
