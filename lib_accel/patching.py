"""The only code that changes a class or a module of the host, with its undo.

A replaced method stays callable for ever: other extensions capture bound methods (sd-webui-controlnet puts
them back on the instance a generation later), so a replacement that is undone goes on working as the
original does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

from lib_accel.device import is_compiling

Method = Callable[..., Any]


class Patch:
    """One method of one class, or function of a module, replaced by `make(original)`, once, and put back.

    `apply` and `undo` may be called in any order, any number of times. If someone replaced the method after
    us, `undo` leaves theirs alone: it may call ours, which then must act as the original (the caller's
    `make` sees to that).
    """

    def __init__(self, owner: type | ModuleType, name: str, make: Callable[[Method], Method]) -> None:
        self.owner, self.name = owner, name
        self._was_own = name in owner.__dict__
        self.original: Method = getattr(owner, name)
        self._replacement = make(self.original)
        self._is_placed = False

    @property
    def is_placed(self) -> bool:
        """Whether the replacement was put in place and not taken off since, be it on top or not."""
        return self._is_placed

    @property
    def is_on_top(self) -> bool:
        """Whether calling the method of the class reaches the replacement first."""
        return self.owner.__dict__.get(self.name) is self._replacement

    def apply(self) -> None:
        """Puts the replacement in place, unless it is there, on top or below somebody else's."""
        was_dropped = getattr(self.owner, self.name) is self.original
        if was_dropped or not self._is_placed:
            setattr(self.owner, self.name, self._replacement)
            self._is_placed = True

    def undo(self) -> None:
        """Puts the original back, unless somebody replaced the replacement."""
        if not self.is_on_top:
            return
        if self._was_own:
            setattr(self.owner, self.name, self.original)
        else:
            delattr(self.owner, self.name)
        self._is_placed = False


class Receiver(Protocol):
    """Who takes calls of a replaced method."""

    def owns(self, module: Any) -> bool:
        """Whether calls of this module are the receiver's to take."""

    def receive(self, module: Any, original: Method, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The method's result; `original` is what the class would have called with the same arguments."""


class Junction:
    """One method of one class, replaced once for all; a call goes to the first receiver that owns the module.

    Several engines live in one process, one for each diffusers pipeline. Were each to patch the class by
    itself, patches would come off in another order than they went on, and leave each other behind.
    """

    def __init__(self, owner: type, name: str) -> None:
        self._receivers: tuple[Receiver, ...] = ()
        self._patch = Patch(owner, name, self._replacement)

    @property
    def original(self) -> Method:
        """What the class had before us."""
        return self._patch.original

    def taker(self, module: Any) -> Receiver | None:
        """Who takes calls of this module now."""
        return next((receiver for receiver in self._receivers if receiver.owns(module)), None)

    def join(self, receiver: Receiver) -> None:
        """Sends calls of the receiver's modules to it; harmless to repeat."""
        if not self._patch.is_placed:  # what the class has may be another than when we left
            self._patch = Patch(self._patch.owner, self._patch.name, self._replacement)
        if receiver not in self._receivers:
            self._receivers = (*self._receivers, receiver)
        self._patch.apply()

    def leave(self, receiver: Receiver) -> None:
        """Sends it no more calls; when the last one leaves, the class is as it was."""
        self._receivers = tuple(each for each in self._receivers if each is not receiver)
        if not self._receivers:
            self._patch.undo()

    def _replacement(self, original: Method) -> Method:
        @functools.wraps(original)
        def forward(module: Any, *args: Any, **kwargs: Any) -> Any:
            if is_compiling():  # somebody traces the host's modules: ours have no place in that graph
                return original(module, *args, **kwargs)
            for receiver in self._receivers:
                if receiver.owns(module):
                    return receiver.receive(module, original, args, kwargs)
            return original(module, *args, **kwargs)

        return forward


# A class's method is one thing in the whole process, and so is what stands in front of it.
_JUNCTIONS: dict[tuple[type, str], Junction] = {}


def junction(owner: type, name: str) -> Junction:
    """The junction in front of this method; made, but not in place, when it is first asked for."""
    if (owner, name) not in _JUNCTIONS:
        _JUNCTIONS[owner, name] = Junction(owner, name)
    return _JUNCTIONS[owner, name]


def is_ours(method: Any) -> bool:
    """Whether a class's method is a junction's replacement."""
    return getattr(method, "__globals__", None) is globals()
