"""What a layout finds in a live module: a block that our functions can run, or the reason why they cannot."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from types import FunctionType, MethodType
from typing import Any, NamedTuple

from torch import Tensor, nn

from lib_accel.audit import METHODS
from lib_accel.blocks.convolution import ConvSpec
from lib_accel.blocks.operators.group_norm import GroupNormSpec
from lib_accel.errors import LayoutError
from lib_accel.layouts.slots import Slot

Trust = Callable[[Callable[..., Any]], bool]

COMPILED = "compiled by torch.compile"

_PADDING_MODES = {"zeros": False, "circular": True}


class Reading(NamedTuple):
    """A block that our functions can run: where its weights are and what of it is not a tensor."""

    slots: tuple[Slot, ...]
    spec: Any = None


class Part(NamedTuple):
    """One of the residual branches that a transformer runs over its tokens in turn.

    `kind`: "self attention", "cross attention", "feed-forward", or "whole" for a block that is not to be
    taken apart; `read` raises LayoutError where our function cannot run it, with `label` to name the part.
    """

    kind: str
    read: Callable[[], Reading]
    call_live: Callable[[Tensor, Tensor | None], Tensor]  # of the tokens and the context, with the residual
    label: str = ""


class Candidate(NamedTuple):
    """A block that our functions may run: how to read it, and how its owner calls the live module.

    `kind` is a key of blocks.kinds.KINDS, or "transformer" or "silu". `read` raises LayoutError where our
    function cannot run the block; then `call_live` runs it, of (x, emb, context), or if there is none, the
    whole owner stays with the host.
    """

    kind: str
    read: Callable[[], Reading]
    call_live: Callable[[Tensor, Any, Any], Tensor] | None = None
    parts: Callable[[], list[list[Part]]] | None = None  # of a transformer: the parts at each depth


def refused(reason: str) -> Candidate:
    """A block that only its owner knows how to call, for this reason."""
    return Candidate("unknown", lambda: _refuse(reason))


def whole(reason: str, call_live: Callable[[Tensor, Tensor | None], Tensor]) -> Part:
    """A part that stays with the live module for this reason."""
    return Part("whole", lambda: _refuse(reason), call_live)


def _refuse(reason: str) -> Reading:
    raise LayoutError(reason)


def class_name(kind: type) -> str:
    """A class by the module that defines it and its name, so that no host need be imported to know it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def is_original(owner: type, method: Callable[..., Any]) -> bool:
    """Whether `method` was defined where `owner` or one of its bases was.

    Asks the function's globals, which a decorator cannot copy, not its `__module__`, which functools.wraps
    does.
    """
    home = _home(method)
    return home is not None and any(home == base.__module__ for base in owner.__mro__)


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile was asked to run this module, in place or by another around it."""
    return "_orig_mod" in module._modules or module.__dict__.get("_compiled_call_impl") is not None


def demand_clean(module: nn.Module, trust: Trust, harmless_hooks: str = "") -> None:
    """Raises LayoutError, with the reason, if calling `module` would do more than its class's own code.

    `trust` is asked about methods that someone replaced. Hooks defined in the module named `harmless_hooks`
    do not count.
    """
    owner = type(module)
    if is_compiled(module):
        raise LayoutError(f"{owner.__name__} is {COMPILED}")
    for base, name in product(owner.__mro__, METHODS):
        method = base.__dict__.get(name)
        if method is not None and not is_original(owner, method) and not trust(method):
            raise LayoutError(f"{base.__name__}.{name} was replaced by {_describe(method)}")
    for name in METHODS[1:]:
        method = module.__dict__.get(name)
        if method is not None and not _is_plain(module, method, trust):
            raise LayoutError(f"{owner.__name__} has a {name} of its own: {_describe(method)}")
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    if any(_home(hook) != harmless_hooks for hook in hooks):
        raise LayoutError(f"{owner.__name__} has a forward hook")


def _is_plain(module: nn.Module, method: Any, trust: Trust) -> bool:
    """Whether an instance's own method is its class's, as patches leave it behind when they are undone."""
    if isinstance(method, MethodType) and method.__self__ is module:
        return is_original(type(module), method.__func__) or trust(method.__func__)
    return isinstance(method, FunctionType) and trust(method)


def _home(method: Any) -> str | None:
    """The module that defines a function; None for what is no function."""
    return getattr(method, "__globals__", {}).get("__name__")


def _describe(method: Any) -> str:
    function = getattr(method, "__func__", method)
    home = getattr(function, "__globals__", {}).get("__name__", "an unknown module")
    return f"{getattr(function, '__qualname__', type(function).__name__)} of {home}"


def demand_type(module: nn.Module | None, *expected: str) -> nn.Module:
    """The module, if its exact class is among the expected ones; else raises LayoutError."""
    found = "nothing" if module is None else class_name(type(module))
    if module is None or found not in expected:
        advice = next((text for start, text in _ADVICE.items() if found.startswith(start)), "")
        raise LayoutError(f"found {found} where {' or '.join(expected)} is expected{advice}")
    return module


# What to do about modules of others, by the start of their class's name.
_ADVICE = {
    "peft.": ": an adapter that is computed at every step; handle.set_loras() fuses it into the weights",
}


CONV2D = "torch.nn.modules.conv.Conv2d"
LINEAR = "torch.nn.modules.linear.Linear"
GROUP_NORM = "torch.nn.modules.normalization.GroupNorm"
LAYER_NORM = "torch.nn.modules.normalization.LayerNorm"
SILU = "torch.nn.modules.activation.SiLU"
DROPOUT = "torch.nn.modules.dropout.Dropout"
IDENTITY = "torch.nn.modules.linear.Identity"
SEQUENTIAL = "torch.nn.modules.container.Sequential"
MODULE_LIST = "torch.nn.modules.container.ModuleList"
MODULE = "torch.nn.modules.module.Module"

# Of a layer that a block of this kind does without.
NO_WEIGHTS = (Slot({"weight": None}, "weight"), Slot({"bias": None}, "bias"))


def conv_spec(module: nn.Module | None, trust: Trust) -> tuple[tuple[Slot, Slot], ConvSpec]:
    """Slots and spec of a two-dimensional convolution."""
    conv: Any = demand_type(module, CONV2D)
    demand_clean(conv, trust)
    if isinstance(conv.padding, str) or conv.padding_mode not in _PADDING_MODES:
        raise LayoutError(f"Conv2d pads by {conv.padding_mode!r} {conv.padding!r}")
    circular = _PADDING_MODES[conv.padding_mode]
    high, wide = conv.padding
    if list(conv._reversed_padding_repeated_twice) != [wide, wide, high, high]:
        raise LayoutError(f"Conv2d pads by {conv._reversed_padding_repeated_twice}, not {conv.padding}")
    return (
        weight_and_bias(conv),
        ConvSpec(conv.stride, conv.padding, conv.dilation, conv.groups, circular),
    )


def linear_slots(module: nn.Module | None, trust: Trust) -> tuple[Slot, Slot]:
    """Slots of a linear layer."""
    layer = demand_type(module, LINEAR)
    demand_clean(layer, trust)
    return weight_and_bias(layer)


def pointwise_slots(module: nn.Module | None, trust: Trust) -> tuple[Slot, Slot]:
    """Slots of a 1x1 convolution that is as good as a linear layer."""
    slots, spec = conv_spec(module, trust)
    conv: Any = module
    if conv.kernel_size != (1, 1) or spec._replace(circular=False) != ConvSpec():
        raise LayoutError(f"projection is {conv}, expected a 1x1 convolution")
    return slots


def group_norm_spec(
    module: nn.Module | None, trust: Trust, upcasting: str = GROUP_NORM
) -> tuple[tuple[Slot, Slot], GroupNormSpec]:
    """Slots and spec of a group norm; `upcasting` names a class that computes in float32, if there is one."""
    norm: Any = demand_type(module, GROUP_NORM, upcasting)
    demand_clean(norm, trust)
    upcast = class_name(type(norm)) == upcasting != GROUP_NORM
    return weight_and_bias(norm), GroupNormSpec(norm.num_groups, norm.eps, upcast)


def layer_norm_eps(module: nn.Module | None, trust: Trust, *expected: str) -> tuple[tuple[Slot, Slot], float]:
    """Slots and epsilon of a layer norm over the last dimension, of torch's class or an `expected` one."""
    norm: Any = demand_type(module, *(expected or (LAYER_NORM,)))
    demand_clean(norm, trust)
    if len(norm.normalized_shape) != 1:
        raise LayoutError(f"LayerNorm is over {norm.normalized_shape}, expected one dimension")
    return weight_and_bias(norm), norm.eps


def children(module: nn.Module | None, expected: str, count: int, trust: Trust) -> tuple[nn.Module, ...]:
    """The children of a container of exactly this class and size."""
    container = demand_type(module, expected)
    demand_clean(container, trust)
    # Not children(), which names a layer that stands twice only once.
    found = tuple(child for child in container._modules.values() if child is not None)
    if len(found) != count:
        raise LayoutError(f"{expected} has {len(found)} children, expected {count}")
    return found


def listed(modules: nn.Module | None, count: int | None = None) -> tuple[nn.Module, ...]:
    """The members of a ModuleList, of this number if one is given."""
    holder = demand_type(modules, MODULE_LIST)
    found = tuple(child for child in holder._modules.values() if child is not None)
    if count is not None and len(found) != count:
        raise LayoutError(f"a list has {len(found)} members, expected {count}")
    return found


def demand_no_dropout(module: nn.Module, trust: Trust) -> None:
    """Raises LayoutError if the dropout layer could ever drop something."""
    dropout: Any = demand_type(module, DROPOUT)
    demand_clean(dropout, trust)
    if dropout.p:
        raise LayoutError(f"dropout of {dropout.p}")


def weight_and_bias(module: nn.Module) -> tuple[Slot, Slot]:
    """Slots of a layer that has both, though the bias may be None."""
    for name in ("weight", "bias"):
        if name not in module._parameters:
            raise LayoutError(f"{type(module).__name__} has no parameter {name!r}")
    return Slot(module._parameters, "weight"), Slot(module._parameters, "bias")
