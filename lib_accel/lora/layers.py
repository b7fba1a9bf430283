"""Makes layers of tensors by name, each checked: complete, finite, of shapes that belong together."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import cache

import torch
from torch import Tensor

from lib_accel.lora.header import AdapterConfig
from lib_accel.lora.kinds import KINDS, Kind, missing_role, names_of, roles_of
from lib_accel.lora.network import Key, Layer, LoraError, Network, Shape
from lib_accel.lora.spelling import find_place, flatten, split_key

_COUNTS = ("on_input",)  # need no floating-point numbers

# Roles that stand for two things, which the tensor tells apart.
_APART: Mapping[str, Callable[[Tensor], str]] = {
    "oft_blocks": lambda tensor: "boft_blocks" if tensor.ndim == 4 else "oft_blocks",
    # A kernel's would be (1, n, 1, 1) for inputs as for outputs; peft's default is outputs.
    "ia3_l": lambda tensor: "ia3_in" if tensor.ndim == 2 and tensor.shape[0] == 1 else "ia3_out",
}


def make_network(
    name: str, tensors: Mapping[str, Tensor], config: AdapterConfig, family: str | None, file: Hashable
) -> Network:
    """The network of these tensors; `file` tells the file that they are from, and is None for others.

    Raises LoraError if a layer is broken, or there is none.
    """
    layers: dict[Key, Layer] = {}
    ignored: list[str] = []
    for stem, spelled in _by_stem(name, tensors, ignored).items():
        roles = {role: tensors[key] for role, key in spelled.items()}
        who = f"LoRA {name!r}: layer {stem!r}"
        component, path = find_place(stem)
        used: set[str] = set()
        for kind in _kinds(who, roles):
            taken = {role: tensor for role, tensor in roles.items() if role in roles_of(KINDS[kind])}
            used |= taken.keys()
            parameter = KINDS[kind].parameter
            key = Key(component, flatten(path), stem, parameter)
            layers[key] = _layer(who, kind, taken, config, component, path, file)
        ignored += [key for role, key in spelled.items() if role not in used]
    if not layers:
        shown = ", ".join(repr(key) for key in list(tensors)[:2]) or "none"
        raise LoraError(
            f"LoRA {name!r} has no LoRA layer among its {len(tensors)} tensors ({shown}); "
            "expected names such as '….lora_down.weight' or '….lora_A.weight'"
        )
    return Network(name, layers, tuple(ignored), family)


def _by_stem(name: str, tensors: Mapping[str, Tensor], ignored: list[str]) -> dict[str, dict[str, str]]:
    """The names of the tensors of each layer by their roles; those that belong to none go into `ignored`."""
    parts: dict[str, dict[str, str]] = {}
    for key, tensor in tensors.items():
        part = split_key(key)
        # LyCORIS's (IA)3 calls its tensor just "weight", which in other files is anything.
        if part is None or (part.role == "weight" and f"{part.stem}.on_input" not in tensors):
            ignored.append(key)
            continue
        role = _APART[part.role](tensor) if part.role in _APART else part.role
        roles = parts.setdefault(part.stem, {})
        if role in roles:
            raise LoraError(
                f"LoRA {name!r}: layer {part.stem!r} has two {role!r} tensors, as of two adapters in "
                "one file; save each adapter on its own"
            )
        roles[role] = key
    return parts


def _kinds(who: str, roles: Mapping[str, Tensor]) -> Iterator[str]:
    """The kinds that a layer is of, one for its weight and one for its bias at most."""
    seen: dict[str, str] = {}
    for name in names_of(list(roles)):
        other = seen.setdefault(KINDS[name].parameter, name)
        if other != name:
            raise LoraError(f"{who} has tensors of {other} and of {name}; save each network on its own")
        yield name


def _layer(
    who: str,
    kind: str,
    roles: Mapping[str, Tensor],
    config: AdapterConfig,
    component: str,
    path: str,
    file: Hashable,
) -> Layer:
    shape = _checked_shape(who, KINDS[kind], roles)
    tensors = {role: tensor for role, tensor in roles.items() if role != "alpha"}
    rank = KINDS[kind].rank(tensors)
    said = roles["alpha"].item() if "alpha" in roles else config.alpha(kind, component, path, rank)
    alpha = _alpha(kind, rank, said, "alpha" in roles)
    identity = file or (alpha, _tensor_identity(tensors))
    return Layer(kind, tensors, alpha, rank or 1, shape, identity)


# What alpha is for the kinds that use it in their own way, where nothing says it; 5 is peft's default.
_OWN_ALPHAS = {"OFT": 0.0, "BOFT": 0.0, "OFT of peft": 5.0}


def _alpha(kind: str, rank: int | None, said: float | None, in_file: bool) -> float:
    """What `Layer.alpha` is. Kinds without a rank have full strength, whatever alpha a file has."""
    if said is None or (rank is None and in_file and kind not in _OWN_ALPHAS):
        return float(_OWN_ALPHAS.get(kind, rank or 1))
    return float(said)


def _tensor_identity(tensors: Mapping[str, Tensor]) -> Hashable:
    """Which tensors these are, and how often they were written to, which inference tensors do not count."""
    return tuple(
        (role, id(tensor), None if tensor.is_inference() else tensor._version)
        for role, tensor in tensors.items()
    )


def _checked_shape(who: str, kind: Kind, roles: Mapping[str, Tensor]) -> Shape:
    """The shape of the weight that a layer is for.

    Raises LoraError unless its tensors are complete, finite, and of shapes that go together.
    """
    missing = missing_role(kind, list(roles))
    if missing is not None:
        raise LoraError(f"{who} has no {missing!r} tensor; the file is incomplete, get it again")
    for role, tensor in roles.items():
        if tensor.numel() == 0:
            raise LoraError(f"{who}: {role!r} is empty; the file is broken, get another one")
        if not tensor.is_floating_point() and role != "alpha" and role not in _COUNTS:
            raise LoraError(f"{who}: {role!r} is {tensor.dtype}; expected floating-point numbers")
        if tensor.is_floating_point() and not is_finite(tensor):
            raise LoraError(f"{who}: {role!r} holds NaN or infinity; the file is broken, get another one")
    numbers = all(roles[role].numel() == 1 for role in ("alpha", *_COUNTS) if role in roles)
    shape = kind.shape(roles) if numbers else None
    if shape is None:
        shapes = ", ".join(f"{role} {tuple(tensor.shape)}" for role, tensor in roles.items())
        raise LoraError(
            f"{who}: the shapes {shapes} do not belong together; the file is broken, get another one"
        )
    return shape


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite, told by the least and the greatest in one pass."""
    numbers = tensor if _has_extremes(tensor.dtype, tensor.device.type) else tensor.float()
    return all(math.isfinite(edge.item()) for edge in torch.aminmax(numbers))


@cache
def _has_extremes(dtype: torch.dtype, device_type: str) -> bool:
    """Whether torch finds extremes in that dtype: not in 8-bit floats, nor in 2.1 in float16 on the CPU."""
    try:
        torch.aminmax(torch.zeros(1, dtype=dtype, device=device_type))
    except (RuntimeError, NotImplementedError):
        return False
    return True
