"""Is this block still what we bound?

Others patch what we run in place of: instance and class `forward`s, hooks, `__class__`, children, padding
modes. None of that is announced, so it is looked at before every use. Weights need no look: they are taken
from the live modules at every call (layouts.slots), so a replaced, moved or merged Parameter is simply what
the call computes with.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_INNER = (
    "attention"  # a method that the forward of some classes calls, and ours of such a class stands for too
)
METHODS = ("__call__", "forward", "_forward", "_conv_forward", _INNER)  # what a call of a module goes through

# What layouts read into specs, and what decides whether they can read. The webui flips padding_mode for
# tiling pictures; diffusers' users set attention processors.
_ATTRIBUTES = (
    "padding_mode",
    "_reversed_padding_repeated_twice",
    "padding",
    "stride",
    "dilation",
    "groups",
    "num_groups",
    "eps",
    "p",
    "heads",
    # of diffusers' modules
    "processor",
    "scale",
    "upcast_attention",
    "upcast_softmax",
    "residual_connection",
    "rescale_output_factor",
    "output_scale_factor",
    "interpolate",
    "_chunk_size",
)


# What the forward of a decoder reads of itself.
_OF_PARENT = ("tanh_out", "give_pre_end")

# What a transformers model asks for its attention is in the configuration that its modules share.
_CONFIGURED = ("_attn_implementation", "_attn_implementation_internal")


def _weakly(value: Any) -> Callable[[], Any]:
    """A reference that does not keep a patch alive: what a patch closes over may be the model itself."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


def _differs(method: Any, known: Callable[[], Any] | None) -> bool:
    """Whether a method is not the known one; one that is gone, like one that is new, differs from none."""
    return method is not None if known is None else method is None or method is not known()


class ClassWatch:
    """The methods of the classes of everything that is bound; `version` grows when one of them changes.

    Classes are few and shared by all blocks, so one look at the start of a model's call serves all its
    blocks.
    """

    def __init__(self) -> None:
        self.version = 0
        self._classes: WeakKeyDictionary[type, list[Callable[[], Any] | None]] = WeakKeyDictionary()

    def include(self, classes: Iterable[type]) -> None:
        """Watches these classes and their bases too, from now."""
        for kind in set(classes):
            for base in kind.__mro__:
                if base not in self._classes:
                    self._classes[base] = self._methods_of(base)

    def look(self) -> None:
        """Raises `version` if a method of a watched class is no longer what it was at the last look."""
        for kind, methods in list(self._classes.items()):
            own = kind.__dict__
            if any(_differs(own.get(name), ref) for name, ref in zip(METHODS, methods, strict=True)):
                self._classes[kind] = self._methods_of(kind)
                self.version += 1

    @staticmethod
    def _methods_of(kind: type) -> list[Callable[[], Any] | None]:
        methods = (kind.__dict__.get(name) for name in METHODS)
        return [None if method is None else _weakly(method) for method in methods]


class Snapshot:
    """What others may change of a set of modules, as it was when the snapshot was taken.

    Holds the modules and their dictionaries, never a Parameter: a model that the host throws away (by
    moving it to the meta device) frees its weights whether or not a snapshot of it is still around.
    """

    __slots__ = (
        "_attribute_dicts",
        "_attribute_names",
        "_attribute_values",
        "_child_dicts",
        "_children",
        "_hook_counts",
        "_hook_dicts",
        "_inner",
        "_method_dicts",
        "_method_names",
        "_modules",
        "_no_methods",
        "_own_methods",
        "_parent",
        "_parent_values",
        "_types",
        "_version",
        "_watch",
    )

    def __init__(self, modules: Sequence[nn.Module], parent: nn.Module, watch: ClassWatch) -> None:
        """Watches `modules`, their classes by way of `watch`, and of `parent` its children and attributes."""
        has_inner = hasattr(type(parent), _INNER)
        watch.include([*map(type, modules), *([type(parent)] if has_inner else [])])
        self._watch, self._version = watch, watch.version
        self._modules = list(modules)
        self._types = list(map(type, modules))
        self._hook_dicts = [
            hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]
        self._hook_counts = list(map(len, self._hook_dicts)) if any(self._hook_dicts) else None
        self._child_dicts = [module._modules for module in (parent, *modules) if module._modules]
        self._children = self._current_children()
        methods = [
            (module.__dict__, name)
            for name in METHODS[1:]  # an instance's own __call__ is never called
            for module in modules
            if hasattr(type(module), name)
        ]
        self._method_dicts, self._method_names = _columns(methods)
        current = self._current_methods()
        self._no_methods: list[Any] = [None] * len(current)
        self._own_methods = [(i, _weakly(method)) for i, method in enumerate(current) if method is not None]
        attributes = [
            (module.__dict__, name)
            for module in (parent, *modules)
            for name in _ATTRIBUTES
            if name in module.__dict__
        ]
        configs = [vars(config) for m in modules if hasattr(config := m.__dict__.get("config"), "__dict__")]
        attributes += [(config, name) for config in configs for name in _CONFIGURED if name in config]
        self._attribute_dicts, self._attribute_names = _columns(attributes)
        self._attribute_values = self._current_attributes()
        # Not by its dictionary, in which a patched forward may hold the parent itself.
        self._parent = weakref.ref(parent)
        self._parent_values = self._current_parent()
        inner = parent.__dict__.get(_INNER)
        self._inner = None if inner is None else _weakly(inner)

    def matches(self) -> bool:
        """Whether everything is as it was; about 0.2 microseconds a module."""
        return (
            self._version == self._watch.version
            and list(map(type, self._modules)) == self._types
            and self._hooks_match()
            and self._methods_match()
            and self._current_children() == self._children
            and self._current_attributes() == self._attribute_values
            and self._parent_matches()
        )

    def _parent_matches(self) -> bool:
        parent = self._parent()
        return parent is not None and (
            self._current_parent() == self._parent_values
            and not _differs(parent.__dict__.get(_INNER), self._inner)
        )

    def _current_parent(self) -> list[Any]:
        parent = self._parent()
        return [] if parent is None else [parent.__dict__.get(name) for name in _OF_PARENT]

    def _hooks_match(self) -> bool:
        if self._hook_counts is None:
            return not any(self._hook_dicts)
        return list(map(len, self._hook_dicts)) == self._hook_counts

    def _methods_match(self) -> bool:
        methods = self._current_methods()
        for index, known in self._own_methods:
            if methods[index] is None or methods[index] is not known():
                return False
            methods[index] = None
        return methods == self._no_methods

    def _current_methods(self) -> list[Any]:
        return list(map(dict.get, self._method_dicts, self._method_names))

    def _current_children(self) -> list[tuple[nn.Module | None, ...]]:
        return list(map(tuple, map(dict.values, self._child_dicts)))

    def _current_attributes(self) -> list[Any]:
        return list(map(dict.get, self._attribute_dicts, self._attribute_names))


def _columns(slots: Sequence[tuple[dict[str, Any], str]]) -> tuple[list[dict[str, Any]], list[str]]:
    return [attributes for attributes, _ in slots], [name for _, name in slots]
