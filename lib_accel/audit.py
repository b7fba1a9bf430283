"""Is this block still what we bound?

Others patch what we run in place of: instance and class `forward`s, hooks, `__class__`, children, padding
modes. None of that is announced, so it is looked at before every use. Weights need no look: they are taken
from the live modules at every call (layouts.slots), so a replaced, moved or merged Parameter is simply what
the call computes with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import Any

from torch import nn

_METHODS = ("forward", "_forward", "__call__")
_WATCHED_ATTRIBUTES = ("padding_mode",)  # what the host flips on a live module (tiling)


class ClassWatch:
    """The methods of the classes of everything that is bound; `version` grows when one of them changes.

    Classes are few and shared by all blocks, so one look at the start of a model's call serves all its
    blocks.
    """

    def __init__(self) -> None:
        self.version = 0
        self._classes: dict[type, None] = {}
        self._methods: list[Any] = []

    def include(self, classes: Iterable[type]) -> None:
        """Watches these classes too, from now."""
        known = len(self._classes)
        self._classes.update(dict.fromkeys(classes))
        self._methods += self._methods_of(list(self._classes)[known:])

    def look(self) -> None:
        """Raises `version` if a method of a watched class is no longer what it was at the last look."""
        methods = self._methods_of(self._classes)
        if methods != self._methods:
            self._methods = methods
            self.version += 1

    @staticmethod
    def _methods_of(classes: Iterable[type]) -> list[Any]:
        return [getattr(kind, name, None) for kind in classes for name in _METHODS]


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
        "_dicts",
        "_hook_counts",
        "_hook_dicts",
        "_inner_dicts",
        "_methods",
        "_modules",
        "_types",
        "_version",
        "_watch",
    )

    def __init__(self, modules: Sequence[nn.Module], parent: nn.Module, watch: ClassWatch) -> None:
        """Watches `modules`, their classes by way of `watch`, and of `parent` only which children it has."""
        watch.include(map(type, modules))
        self._watch, self._version = watch, watch.version
        self._modules = list(modules)
        self._types = list(map(type, modules))
        self._dicts: list[dict[str, Any]] = [module.__dict__ for module in modules]
        self._inner_dicts = [module.__dict__ for module in modules if hasattr(type(module), "_forward")]
        self._methods = self._current_methods()
        self._hook_dicts = [
            hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]
        self._hook_counts = list(map(len, self._hook_dicts)) if any(self._hook_dicts) else None
        self._child_dicts = [module._modules for module in (parent, *modules) if module._modules]
        self._children = self._current_children()
        watched = [
            (attributes, name)
            for attributes in self._dicts
            for name in _WATCHED_ATTRIBUTES
            if name in attributes
        ]
        self._attribute_dicts = [attributes for attributes, _ in watched]
        self._attribute_names = [name for _, name in watched]
        self._attribute_values = self._current_attributes()

    def matches(self) -> bool:
        """Whether everything is as it was; about 0.15 microseconds a module."""
        return (
            self._version == self._watch.version
            and list(map(type, self._modules)) == self._types
            and self._hooks_match()
            and self._current_methods() == self._methods
            and self._current_children() == self._children
            and self._current_attributes() == self._attribute_values
        )

    def _hooks_match(self) -> bool:
        if self._hook_counts is None:
            return not any(self._hook_dicts)
        return list(map(len, self._hook_dicts)) == self._hook_counts

    def _current_methods(self) -> list[Any]:
        outer = map(dict.get, self._dicts, repeat("forward"))
        inner = map(dict.get, self._inner_dicts, repeat("_forward"))
        return list(chain(outer, inner))

    def _current_children(self) -> list[tuple[nn.Module | None, ...]]:
        return list(map(tuple, map(dict.values, self._child_dicts)))

    def _current_attributes(self) -> list[Any]:
        return list(map(dict.get, self._attribute_dicts, self._attribute_names))
