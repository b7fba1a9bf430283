"""Reads a LoRA, from a .safetensors file or from tensors by name, into a `Network`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lib_accel.lora.header import AdapterConfig, family
from lib_accel.lora.layers import make_network
from lib_accel.lora.network import Key, Layer, LoraError, Network

__all__ = ["FileState", "Key", "Layer", "LoraError", "Network", "check_path", "file_state", "read_network"]

_PICKLES = (".pt", ".pth", ".ckpt", ".bin")
_HEADER_KEY = "lora_adapter_metadata"  # diffusers, since 0.34


class FileState(NamedTuple):
    """A file that was not written to since: equal states, equal content."""

    path: str
    size: int
    written: int  # nanoseconds
    config_written: int  # of peft's settings beside it, 0 if there are none


def read_network(source: str | Path | Mapping[str, Tensor], name: str | None = None) -> Network:
    """Reads a network of any kind in `kinds.KINDS`; `name` is what messages call it, by default the file's.

    Tensors of a file are mapped, not copied: do not overwrite the file in place while the network is in use.
    Raises LoraError if there is no such file, or what it holds is incomplete, not finite or of no known kind.
    """
    if isinstance(source, Mapping):
        return make_network(name or "given as tensors", source, AdapterConfig({}), None, file=None)
    path = Path(source)
    check_path(path)
    name = name or path.stem
    try:
        state = file_state(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dictionary)
    except (SafetensorError, OSError) as error:
        raise LoraError(
            f"LoRA {name!r}: {path.name} is cut short or no safetensors file ({error}); download it again"
        ) from None
    return make_network(name, tensors, _adapter_config(name, path, header), family(header), state)


def file_state(path: Path) -> FileState:
    """Which file this is, and in which state: another if it, or peft's settings beside it, were written anew.

    Raises OSError if there is none.
    """
    state = path.stat()
    beside = _config_beside(path)
    changed = 0 if beside is None else beside.stat().st_mtime_ns
    return FileState(str(path.resolve()), state.st_size, state.st_mtime_ns, changed)


def _config_beside(path: Path) -> Path | None:
    beside = path.with_name("adapter_config.json")
    return beside if path.name == "adapter_model.safetensors" and beside.is_file() else None


def check_path(path: Path) -> None:
    """Raises LoraError unless there is a .safetensors file."""
    if path.is_dir():
        raise LoraError(f"LoRA {str(path)!r} is a folder; give the .safetensors file in it")
    if not path.exists():
        raise LoraError(f"LoRA {str(path)!r}: no such file; give the path of a .safetensors file")
    if path.suffix.lower() in _PICKLES:
        raise LoraError(
            f"LoRA {path.name!r} is a pickle, which can run code when it is read; "
            "convert it to .safetensors, or get it in that format"
        )
    if path.suffix.lower() != ".safetensors":
        raise LoraError(f"LoRA {path.name!r} ends with {path.suffix!r}; expected a .safetensors file")


def _adapter_config(name: str, path: Path, header: Mapping[str, str]) -> AdapterConfig:
    """The settings that diffusers keeps in the header, or those that peft keeps beside its file."""
    text, where = header.get(_HEADER_KEY, "{}"), "header"
    beside = _config_beside(path)
    if beside is not None:
        text, where = beside.read_text("utf-8"), beside.name
    try:
        settings: Any = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise LoraError(f"LoRA {name!r}: the settings in its {where} are no JSON object; save the file again")
    return AdapterConfig(settings)
