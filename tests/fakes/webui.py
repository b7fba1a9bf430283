"""As much of the webui's packages `modules` and `gradio` as the extension imports."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

_NAMES = (
    "devices",
    "paths_internal",
    "scripts",
    "sd_models",
    "sd_unet",
    "shared",
    "script_callbacks",
    "ui_components",
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


class FakeComponent:
    """Any component of gradio; keeps what it was made with and what its event calls."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs
        self.clicked: Any = None

    def __enter__(self) -> FakeComponent:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def click(self, **event: Any) -> None:
        self.clicked = event


class FakeGradio(ModuleType):
    """The package gradio; keeps the components that were made."""

    def __init__(self) -> None:
        super().__init__("gradio")
        self.made: list[Any] = []
        for name in ("Row", "HTML", "Button", "Checkbox", "Number", "Radio", "Dropdown"):
            setattr(self, name, self._making(type(name, (FakeComponent,), {})))

    def _making(self, kind: type) -> Callable[..., Any]:
        def make(*args: Any, **kwargs: Any) -> Any:
            self.made.append(kind(*args, **kwargs))
            return self.made[-1]

        return make


def install() -> SimpleNamespace:
    """Puts the fakes into sys.modules and gives them by name; the caller takes them out again."""
    modules: dict[str, ModuleType] = {name: ModuleType(f"modules.{name}") for name in _NAMES}
    modules["script_callbacks"] = FakeCallbacks()
    vars(modules["devices"]).update(unet_needs_upcast=False, fp8=False)
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
