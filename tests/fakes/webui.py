"""As much of the webui's packages `modules` and `gradio` as the extension imports."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch

from tests.fakes import webui_processing

_NAMES = (
    "call_queue",
    "devices",
    "extensions",
    "launch_utils",
    "paths_internal",
    "processing",
    "scripts",
    "sd_models",
    "sd_unet",
    "shared",
    "script_callbacks",
    "ui_components",
)

_KNOW_THEM = (
    "lib_accel.hosts.webui",
    "lib_accel.hosts.webui_comparison",
    "lib_accel.hosts.webui_painting",
    "lib_accel.extension",
    "lib_accel.ui.accordion",
    "lib_accel.ui.settings",
    "lib_accel.ui.tab",
)


class FakeOptions:
    """modules.options.Options: a setting that nobody registered and that was never saved is no attribute."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.data_labels: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("data", {}):
            return self.data[name]
        if name in self.__dict__.get("data_labels", {}):
            return self.data_labels[name].default
        raise AttributeError(name)

    def add_option(self, name: str, info: Any) -> None:
        self.data_labels[name] = info

    def set(self, name: str, value: Any) -> bool:
        assert not sys.modules["modules"].shared.cmd_opts.freeze_settings, "changing settings is disabled"
        self.data[name] = value
        return True


class FakeOptionInfo:
    """modules.options.OptionInfo."""

    def __init__(
        self,
        default: Any,
        label: str = "",
        component: Any = None,
        component_args: Any = None,
        *,
        section: Any,
        category_id: str,
    ) -> None:
        self.default, self.label, self.component, self.section = default, label, component, section
        self.component_args = component_args
        self.comment = ""

    def info(self, text: str) -> FakeOptionInfo:
        self.comment = text
        return self


class FakeCallbacks(ModuleType):
    """modules.script_callbacks: keeps what was registered."""

    def __init__(self) -> None:
        super().__init__("modules.script_callbacks")
        self.registered: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Callable[[Any], None]:
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda function: self.registered.update({name: function})


_COMPONENTS = (
    "Blocks",
    "Button",
    "Checkbox",
    "Column",
    "Dropdown",
    "HTML",
    "Number",
    "Radio",
    "Row",
    "Slider",
    "Textbox",
)


class FakeComponent:
    """Any component of gradio; keeps what it was made with and what its event calls."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs
        self.clicked: Any = None
        self.event = FakeEvent()

    def __enter__(self) -> FakeComponent:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def click(self, **event: Any) -> FakeEvent:
        self.clicked = event
        return self.event


class FakeEvent:
    """What a component returns where it is told what to call; keeps what follows."""

    def __init__(self) -> None:
        self.followed: list[dict[str, Any]] = []

    def then(self, **event: Any) -> FakeEvent:
        self.followed.append(event)
        return self


class FakeGradio(ModuleType):
    """The package gradio; keeps the components that were made."""

    def __init__(self) -> None:
        super().__init__("gradio")
        self.__version__ = "3.41.2"
        self.made: list[Any] = []
        for name in _COMPONENTS:
            setattr(self, name, self._making(type(name, (FakeComponent,), {})))

    @staticmethod
    def update(**changes: Any) -> dict[str, Any]:
        """What a function returns to change a component's properties."""
        return changes

    def _making(self, kind: type) -> Callable[..., Any]:
        def make(*args: Any, **kwargs: Any) -> Any:
            self.made.append(kind(*args, **kwargs))
            return self.made[-1]

        return make


@contextlib.contextmanager
def installed() -> Iterator[SimpleNamespace]:
    """The fakes in sys.modules, by name; afterwards they are gone, with all of ours that knows them."""
    before = dict(sys.modules)
    for name in _KNOW_THEM:
        sys.modules.pop(name, None)
    yield _install()
    for name in [*sys.modules]:
        if name.split(".")[0] in ("modules", "gradio", "networks") or name in _KNOW_THEM:
            del sys.modules[name]
    sys.modules.update({name: before[name] for name in before if name not in sys.modules})


def _install() -> SimpleNamespace:
    modules: dict[str, ModuleType] = {name: ModuleType(f"modules.{name}") for name in _NAMES}
    modules["script_callbacks"] = FakeCallbacks()
    vars(modules["devices"]).update(unet_needs_upcast=False, fp8=False, device=torch.device("cpu"))
    vars(modules["extensions"]).update(extensions=[])
    vars(modules["launch_utils"]).update(git_tag=lambda: "v1.10.1")
    vars(modules["paths_internal"]).update(data_path="no such folder")
    vars(modules["scripts"]).update(scripts_data=[], Script=object, AlwaysVisible=object())
    vars(modules["sd_models"]).update(model_data=SimpleNamespace(sd_model=None))
    vars(modules["sd_unet"]).update(current_unet=None)
    vars(modules["ui_components"]).update(InputAccordion=FakeComponent)
    vars(modules["shared"]).update(
        opts=FakeOptions(),
        OptionInfo=FakeOptionInfo,
        loaded_hypernetworks=[],
        state=SimpleNamespace(job="", time_start=1.0),
        cmd_opts=SimpleNamespace(
            accel_off=False, api=True, nowebui=False, api_auth=None, freeze_settings=False
        ),
    )
    webui_processing.fill(modules)
    package = ModuleType("modules")
    vars(package).update(modules, __path__=[])
    gradio = FakeGradio()
    sys.modules.update({"modules": package, "gradio": gradio})
    sys.modules.update({f"modules.{name}": module for name, module in modules.items()})
    return SimpleNamespace(**modules, gradio=gradio)


def function_of(module: str, source: str, name: str, **names: Any) -> Any:
    """A function that a module of this name defined, as its globals say."""
    namespace: dict[str, Any] = {"__name__": module, **names}
    exec(source, namespace)
    assert isinstance(namespace[name], FunctionType)
    return namespace[name]
