"""Names and shapes of the tensors in a weight file, before anything of it is loaded."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from lib_accel.demo.errors import DemoError, refused

Shapes = Mapping[str, tuple[int, ...]]

_LENGTH_BYTES = 8  # of a safetensors file: the header's length comes first
_PICKLED = (".ckpt", ".pt", ".pth")
_PICKLE_START = b"\x80"  # of the files that torch once wrote; since, they are zips
# What stands at the beginning of files that were meant to be weights.
_IMPOSTORS = (
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the weights with `git lfs pull`"),
    (b"<", "a web page", "download the file itself"),
)


@dataclass(frozen=True)
class WeightFile:
    """What a file's header says: the shape of each tensor by its name, and what its maker noted."""

    path: Path
    shapes: Shapes
    metadata: Mapping[str, str] = field(default_factory=dict)

    def has(self, *prefixes: str) -> bool:
        """Whether any tensor's name begins with one of these."""
        return any(name.startswith(prefixes) for name in self.shapes)

    def under(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """The shapes of what lies under a prefix, which is taken off."""
        return {
            name.removeprefix(prefix): shape for name, shape in self.shapes.items() if name.startswith(prefix)
        }


def read_weight_file(path: Path) -> WeightFile:
    """Reads the header of a .safetensors file, or of a .ckpt that holds nothing but tensors.

    Raises DemoError if the file is neither, or is cut short.
    """
    suffix = path.suffix.lower()
    if suffix in _PICKLED:
        return WeightFile(path, _pickled_shapes(path))
    if suffix != ".safetensors":
        got = f"a {suffix} file" if suffix else "a file without ending"
        raise refused(path, got=got, expected=".safetensors or .ckpt", do="give weights of that kind")
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return WeightFile(path, shapes, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None


def _pickled_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    is_zip, start = zipfile.is_zipfile(path), _start(path)
    if not is_zip and not start.startswith(_PICKLE_START):
        raise _no_weights(path, start)
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError:
        raise refused(
            path,
            got="a file that could run code as it is opened",
            expected="nothing but tensors",
            do="convert it to .safetensors with a tool that you trust",
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError):
        raise _no_weights(path, start) from None
    while isinstance(held, dict) and isinstance(held.get("state_dict"), dict):
        held = held["state_dict"]
    tensors = held.items() if isinstance(held, dict) else ()
    return {str(name): tuple(value.shape) for name, value in tensors if isinstance(value, torch.Tensor)}


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32)


def _no_weights(path: Path, start: bytes) -> DemoError:
    for mark, what, advice in _IMPOSTORS:
        if start.startswith(mark):
            return refused(path, got=what, expected="weights", do=advice)
    got = f"{path.stat().st_size:,} bytes that are no {path.suffix} file"
    return refused(path, got=got, expected="weights", do="download it again")


def _unreadable(path: Path, error: Exception) -> DemoError:
    """What is wrong with a .safetensors file that its reader did not take."""
    start, size = _start(path), path.stat().st_size
    if start[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":
        return _no_weights(path, start)
    header_size = int.from_bytes(start[:_LENGTH_BYTES], "little")
    with path.open("rb") as file:
        file.seek(_LENGTH_BYTES)
        expected = _LENGTH_BYTES + header_size + _data_size(file.read(min(header_size, size)))
    if size < expected:
        sizes = {"got": f"{size:,} bytes of it", "expected": f"{expected:,} or more"}
        return refused(path, **sizes, do="it is cut short, download it again")
    got = f"a file that safetensors cannot read ({first_line(error)})"
    return refused(path, got=got, expected="weights", do="download it again")


def _data_size(header: bytes) -> int:
    """Bytes of tensors that a header tells of; 0 if the header itself is cut short."""
    try:
        entries = json.loads(header)
        return max(
            (entry["data_offsets"][1] for entry in entries.values() if "data_offsets" in entry), default=0
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return 0


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
