"""What an engine knows of the live modules it has met: units as they are bound, and why some are not ours."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from lib_accel.audit import ClassWatch
from lib_accel.bound import BoundUNet, BoundUnit
from lib_accel.calls import ModelCall
from lib_accel.host import Host
from lib_accel.layouts.compvis import Family
from lib_accel.layouts.entries import Entry, Model, Unit
from lib_accel.layouts.reading import class_name, is_compiled, is_original
from lib_accel.patching import Method, Receiver, is_ours, junction
from lib_accel.whole import Frame

_BRIEF = 10  # calls, below which a frame was not worth a recording
_MOST_BRIEF = 3  # of those in turn


class Bindings:
    """Of one engine. Modules are known by weak references only."""

    def __init__(self, host: Host) -> None:
        self.entries: dict[type, Entry] = {}  # of the classes that are patched
        self.broken: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # that failed, and how
        self.watch = ClassWatch()
        self.lock = threading.RLock()  # around what is bound and watched: reports come from other threads
        self._host = host
        self._replaced: dict[type, str] = {}  # what somebody had replaced before us, and the reason
        self.forget()

    def forget(self) -> None:
        """Nothing is bound any more."""
        self._units: WeakKeyDictionary[nn.Module, BoundUnit] = WeakKeyDictionary()
        self._unets: WeakKeyDictionary[nn.Module, BoundUNet] = WeakKeyDictionary()
        self._frames: WeakKeyDictionary[nn.Module, Frame] = WeakKeyDictionary()

    def enter(self, owner: type, entry: Entry, original: Method) -> None:
        """Takes a class whose `forward` is ours; `original` is what it had before."""
        self.entries[owner] = entry
        self._replaced.pop(owner, None)
        if not (isinstance(entry, Model) or is_original(owner, original) or self.trusts(original)):
            self._replaced[owner] = f"{class_name(owner)}.forward had been replaced before us"

    def trusts(self, method: Callable[..., Any]) -> bool:
        """Whether a replaced method does what the class's own does."""
        return is_ours(method) or self._host.trusts(method)

    def units_of(self, model: nn.Module) -> Iterator[tuple[nn.Module, Unit]]:
        """The units of a model and what they are."""
        for module in model.modules():
            entry = self.entries.get(type(module))
            if isinstance(entry, Unit) and entry.applies(module):
                yield module, entry

    def unit(self, module: nn.Module, unit: Unit) -> BoundUnit:
        """The bound unit, bound anew if it is not what it was."""
        bound = self._units.get(module)
        if bound is None or not bound.holds():
            with self.lock:
                mark = self._host.network_mark
                bound = self._units[module] = BoundUnit(module, unit, self.trusts, mark, self.watch)
        return bound

    def known_unit(self, module: nn.Module) -> BoundUnit | None:
        """The unit as it was last bound."""
        return self._units.get(module)

    def joining_unit(
        self, module: nn.Module, x: Tensor, skip: Tensor, call: ModelCall, receiver: Receiver
    ) -> BoundUnit | None:
        """The unit, if `receiver` may run it on x and its skip instead of calling the module on both joined.

        That is so if it gains, and if such a call runs the unit and nothing besides.
        """
        entry, known = self.entries.get(type(module)), self._units.get(module)
        if not isinstance(entry, Unit) or not entry.applies(module):
            return None
        if known is not None and known.begins_with_residual and not known.joins(x, skip, call):
            return None  # most often so, and then there is no need to look whether it still holds
        bound = self.unit(module, entry)
        may = (
            bound.joins(x, skip, call)
            and not self.reasons(module, bound.failure, call)
            and junction(type(module), "forward").taker(module) is receiver
            and _is_bare(module)
        )
        return bound if may else None

    def unet(self, unet: nn.Module, names: Family) -> BoundUNet:
        """As `unit`, of a UNet's own layers."""
        bound = self._unets.get(unet)
        if bound is None or not bound.holds():
            with self.lock:
                mark = self._host.network_mark
                bound = self._unets[unet] = BoundUNet(unet, names, self.trusts, mark, self.watch)
        return bound

    def frame(self, model: nn.Module) -> Frame:
        """As `unit`, of what is around the units of a model."""
        frame = self._frames.get(model)
        if frame is None or not frame.holds() or (frame.brief >= _MOST_BRIEF and frame.calls >= _BRIEF):
            with self.lock:
                units = dict(self.units_of(model))
                new = self._frames[model] = Frame(model, units, self.trusts, self.watch)
            if frame is not None and frame.calls < _BRIEF:
                new.brief = frame.brief + 1
            if new.brief >= _MOST_BRIEF and new.failure is None:
                new.failure = f"{type(model).__name__} changes from call to call"
            frame = new
        frame.calls += 1
        return frame

    def reasons(self, module: nn.Module, unread: str | None, call: ModelCall) -> Sequence[str]:
        """Why a module stays with the host in this call; empty if it does not."""
        if call.stand_aside:
            return call.stand_aside
        failure = self.failure(module, unread)
        return () if failure is None else (failure,)

    def failure(self, module: nn.Module, unread: str | None) -> str | None:
        """Why a module stays with the host in any call; `unread`: why it could not be read, if so."""
        return self._replaced.get(type(module)) or self.broken.get(module, unread)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _is_bare(module: nn.Module) -> bool:
    """Whether to call a module of a patched class is to call our forward: nobody hears of it or steps in."""
    kind, own = type(module), vars(module)
    return (
        is_ours(kind.forward)
        and kind.__call__ is nn.Module.__call__
        and "forward" not in own
        and not any(own.get(name) for name in _HOOKS)
        and not is_compiled(module)
    )
