"""Reads a LoRA, from a .safetensors file or from tensors by name, into a `Network`."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lib_accel.errors import AccelError
from lib_accel.lora.header import AdapterConfig
from lib_accel.lora.spelling import find_place, flatten, other_kind, split_key


class LoraError(AccelError):
    """A LoRA cannot be read, or networks cannot be fused into these models as they are."""


class Key(NamedTuple):
    """Which layer of a model a layer of a network is for."""

    component: str  # "unet", "text_encoder" or "text_encoder_2"
    path: str  # in that component, flat: down_blocks_0_attentions_0_proj_in
    spelled: str  # as the file has it, without the tensor's role


@dataclass(frozen=True, eq=False)
class Layer:
    """The factors of one layer, in the file's own dtype.

    down is (rank, in) or (rank, in, height, width), up is (out, rank) or (out, rank, 1, 1); mid, if any, is
    (rank, rank, height, width), and down is then (rank, in, 1, 1). The strength is alpha / rank.
    Layers of one place with equal `identity` change it in the same way, as long as one of them is kept.
    """

    down: Tensor
    up: Tensor
    mid: Tensor | None
    alpha: float
    identity: Hashable

    @property
    def rank(self) -> int:
        """Rows of the down factor."""
        return self.down.shape[0]


@dataclass(frozen=True, eq=False)
class Network:
    """A LoRA as it was read."""

    name: str
    layers: Mapping[Key, Layer]
    ignored: tuple[str, ...] = ()  # tensors that belong to no layer


_PICKLES = (".pt", ".pth", ".ckpt", ".bin")
_HEADER_KEY = "lora_adapter_metadata"  # diffusers, since 0.34


def read_network(source: str | Path | Mapping[str, Tensor], name: str | None = None) -> Network:
    """Reads a LoRA or LoCon network; `name` is what messages call it, by default the file's name.

    Tensors of a file are mapped, not copied: do not overwrite the file in place while the network is in use.
    Raises LoraError if there is no such file, or what it holds is incomplete, not finite or of another kind.
    """
    if isinstance(source, Mapping):
        name = name or "given as tensors"
        return _network(name, source, AdapterConfig({}), file=None)
    path = Path(source)
    _check_path(path)
    name = name or path.stem
    try:
        state = path.stat()
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dictionary)
    except (SafetensorError, OSError) as error:
        raise LoraError(
            f"LoRA {name!r}: {path.name} is cut short or no safetensors file ({error}); download it again"
        ) from None
    file_identity = (str(path.resolve()), state.st_mtime_ns, state.st_size)
    return _network(name, tensors, _adapter_config(name, path, header), file_identity)


def _check_path(path: Path) -> None:
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
    beside = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and beside.is_file():
        text, where = beside.read_text("utf-8"), beside.name
    try:
        settings: Any = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise LoraError(f"LoRA {name!r}: the settings in its {where} are no JSON object; save the file again")
    return AdapterConfig(settings)


def _network(name: str, tensors: Mapping[str, Tensor], config: AdapterConfig, file: Hashable) -> Network:
    """The network of these tensors; `file` tells the file that they are from, and is None for others."""
    parts, ignored = _by_stem(name, tensors)
    layers = {}
    for stem, roles in parts.items():
        if roles.keys() == {"alpha"}:
            ignored.append(f"{stem}.alpha")
            continue
        _check_factors(f"LoRA {name!r}: layer {stem!r}", roles)
        component, path = find_place(stem)
        rank = roles["down"].shape[0]
        alpha = roles.pop("alpha").item() if "alpha" in roles else config.alpha(component, path, rank)
        alpha = float(rank if alpha is None else alpha)
        identity = file or (alpha, _tensor_identity(roles))
        key = Key(component, flatten(path), stem)
        layers[key] = Layer(roles["down"], roles["up"], roles.get("mid"), alpha, identity)
    if not layers:
        shown = ", ".join(repr(key) for key in list(tensors)[:2]) or "none"
        raise LoraError(
            f"LoRA {name!r} has no LoRA layer among its {len(tensors)} tensors ({shown}); "
            "expected names such as '….lora_down.weight' or '….lora_A.weight'"
        )
    return Network(name, layers, tuple(ignored))


def _tensor_identity(tensors: Mapping[str, Tensor]) -> Hashable:
    """Which tensors these are, and how often they were written to, which inference tensors do not count."""
    return tuple(
        (role, id(tensor), None if tensor.is_inference() else tensor._version)
        for role, tensor in tensors.items()
    )


def _by_stem(name: str, tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """The tensors of each layer by their roles, and the names of those that belong to none."""
    parts: dict[str, dict[str, Tensor]] = {}
    ignored = []
    for key, tensor in tensors.items():
        kind = other_kind(key)
        if kind is not None:
            raise LoraError(
                f"LoRA {name!r} is of kind {kind} (it has {key!r}); this version fuses only LoRA and LoCon"
            )
        part = split_key(key)
        if part is None:
            ignored.append(key)
            continue
        roles = parts.setdefault(part.stem, {})
        if part.role in roles:
            raise LoraError(
                f"LoRA {name!r}: layer {part.stem!r} has two {part.role!r} tensors, as of two adapters in "
                "one file; save each adapter on its own"
            )
        roles[part.role] = tensor
    return parts, ignored


def _check_factors(who: str, roles: Mapping[str, Tensor]) -> None:
    """Raises LoraError unless the tensors of a layer can be multiplied and are finite."""
    for role in ("down", "up"):
        if role not in roles:
            raise LoraError(f"{who} has no {role!r} tensor; the file is incomplete, get it again")
    for role, tensor in roles.items():
        if tensor.numel() == 0:
            raise LoraError(f"{who}: {role!r} is empty; the file is broken, get another one")
        if not tensor.is_floating_point() and role != "alpha":
            raise LoraError(f"{who}: {role!r} is {tensor.dtype}; expected floating-point numbers")
        if not _is_finite(tensor):
            raise LoraError(f"{who}: {role!r} holds NaN or infinity; the file is broken, get another one")
    down, up, mid = roles["down"], roles["up"], roles.get("mid")
    fits = down.ndim in (2, 4) and up.ndim in (2, 4) and all(side == 1 for side in up.shape[2:])
    fits = fits and up.shape[1] == down.shape[0]
    if mid is not None:
        square = (down.shape[0], down.shape[0])
        fits = (
            fits and mid.ndim == 4 and mid.shape[:2] == square and all(side == 1 for side in down.shape[2:])
        )
    if "alpha" in roles:
        fits = fits and roles["alpha"].numel() == 1
    if not fits:
        shapes = ", ".join(f"{role} {tuple(tensor.shape)}" for role, tensor in roles.items())
        raise LoraError(
            f"{who}: the shapes {shapes} do not belong together; the file is broken, get another one"
        )


def _is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite, told by the least and the greatest in one pass."""
    numbers = tensor.float() if tensor.element_size() == 1 else tensor  # aminmax has no 8-bit floats
    return all(math.isfinite(edge.item()) for edge in torch.aminmax(numbers))
