"""diffusers' own loading, in silence, with its complaints in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import transformers
from safetensors import SafetensorError
from torch import nn

from lib_accel.demo.errors import refused
from lib_accel.demo.weight_file import first_line

_UNJUDGED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
_UNMARKED = {"add_watermarker": False}
# The pipelines that can be loaded, with what keeps them from judging or marking their pictures.
PIPELINES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "StableDiffusionPipeline": _UNJUDGED,
        "StableDiffusionInpaintPipeline": _UNJUDGED,
        "StableDiffusionXLPipeline": _UNMARKED,
        "StableDiffusionXLInpaintPipeline": _UNMARKED,
    }
)

# diffusers lets whatever it meets in an odd file or folder through as it is.
_UNLOADABLE = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError)


def attempt(path: Path, load: Callable[[], Any]) -> Any:
    """What `load` gives, without bars and warnings. Raises DemoError for what the libraries raise."""
    with silent():
        try:
            return load()
        except _UNLOADABLE as error:
            # Parameters begin without memory; moving one that the file did not fill is what fails.
            why = "weights are missing" if "meta tensor" in str(error) else first_line(error)
            raise refused(
                path,
                got=f"what diffusers {diffusers.__version__} cannot load ({why})",
                expected="a whole model",
                do="download it again",
            ) from error


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """diffusers and transformers without bars and warnings for the block, and as before after it."""
    with _silent(diffusers.utils.logging), _silent(transformers.utils.logging):
        yield


@contextlib.contextmanager
def _silent(library_logging: Any) -> Iterator[None]:
    had_bars, verbosity = library_logging.is_progress_bar_enabled(), library_logging.get_verbosity()
    library_logging.disable_progress_bar()
    library_logging.set_verbosity_error()  # they warn of what is so, or works, in spite of what they say
    try:
        yield
    finally:
        library_logging.set_verbosity(verbosity)
        if had_bars:
            library_logging.enable_progress_bar()


def demand_complete(path: Path, name: str, model: nn.Module) -> None:
    """Raises DemoError if a parameter was not in the file: diffusers leaves it without memory."""
    missing = [parameter for parameter, value in model.named_parameters() if value.is_meta]
    if missing:
        got = f"{name} without {len(missing)} of its weights, such as {missing[0]}"
        raise refused(path, got=got, expected="all of them", do="download it again")
