"""The only code that changes a class, with its undo.

A replaced method stays callable for ever: other extensions capture bound methods (sd-webui-controlnet puts
them back on the instance a generation later), so a replacement that is undone goes on working as the
original does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Method = Callable[..., Any]


class ClassPatch:
    """One method of one class replaced by `make(original)`, once, and put back.

    `apply` and `undo` may be called in any order, any number of times. If someone replaced the method after
    us, `undo` leaves theirs alone: it may call ours, which then must act as the original (the caller's
    `make` sees to that).
    """

    def __init__(self, owner: type, name: str, make: Callable[[Method], Method]) -> None:
        self.owner, self.name = owner, name
        self._was_own = name in owner.__dict__
        self.original: Method = getattr(owner, name)
        self._replacement = make(self.original)
        self._is_placed = False

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
