"""All that is measured on this machine: codes of blocks, what computes operators, how weights lie.

It is looked for while pictures are drawn, measured beside them, kept on disk, and comes into effect between
two pictures.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from lib_accel.blocks.operators import layout
from lib_accel.blocks.operators.attention import ATTENTION, SAGE_ATTENTION, why_not_sage
from lib_accel.blocks.operators.operator import Arguments, Operator, Tuned
from lib_accel.channels_last import CHANNELS_LAST
from lib_accel.choice import Choice
from lib_accel.device import OUT_OF_MEMORY
from lib_accel.formats import AS_LOADED, Format, Formats
from lib_accel.graphs.launcher import Launcher
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.graphs.workshop import workshop_of_this_process
from lib_accel.host import Host
from lib_accel.options import Options
from lib_accel.packing import PACKED
from lib_accel.report import FormatCase, TuningReport
from lib_accel.tuning.asked import Asked
from lib_accel.tuning.tuner import Tuner

SAGE = "sage"  # a value of the option `attention`

# Values of the option `code` with which operators are computed by what was measured to be the fastest.
_TUNES = ("auto", "measured", "compiled")

_PATIENCE_S = 5.0  # of who leaves, with those who write to weights

_NONE = Format(False, "", {})  # of a model without such weights


class Measured:
    """Of one engine. Calls may come from any thread."""

    def __init__(
        self,
        host: Host,
        verdicts: Verdicts,
        launcher_of: Callable[[torch.device], Launcher | None],
        choice: Choice | None = None,
        tuner: Tuner | None = None,
        *,
        changed: Callable[[], None],
    ) -> None:
        """`launcher_of`: what replays calls on a device. choice, tuner: None for those of this process.

        changed: is told when other implementations hold, or weights lie elsewhere.
        """
        self._changed = changed
        self.choice = choice or Choice(verdicts, workshop_of_this_process(), host.is_busy, launcher_of)
        self._tuner = tuner or Tuner(
            verdicts,
            self.choice.activity,
            lambda: host.is_busy() or self.choice.is_compiling,  # which would disturb the times
            lambda device: launcher_of(device) is not None,
        )
        self.choice.is_measuring = lambda: self._tuner.pending > 0
        self._images, self._projections = (Formats(self, verdicts, way) for way in (CHANNELS_LAST, PACKED))
        self._asked: dict[torch.device, Asked] = {}  # the latest
        # Held by who writes to weights or lays them: what is written to memory that they leave is lost.
        self.weights = threading.RLock()
        self.is_put_off = False  # whether `apply` could not lay them, see `make_up`

    def tuned(self, options: Options, device: torch.device) -> Tuned | None:
        """What computes operators on a device, the same object as long as it holds; None for plain torch."""
        if options.code not in _TUNES:
            self._lay_back()
            return None
        choices = self._tuner.tuned(device)
        if choices is None or options.attention != SAGE:
            return choices
        asked = self._asked.get(device)
        if asked is None or asked.measured is not choices:
            asked = self._asked[device] = Asked(choices, ATTENTION, SAGE_ATTENTION, why_not_sage)
        return asked

    def merging(self, options: Options, device: torch.device) -> Tuned | None:
        """What merges LoRAs on a device, which is never replayed; as `tuned`."""
        is_tuned = options.enabled and options.code in _TUNES
        return self._tuner.tuned(device, is_replayed=False) if is_tuned else None

    def note_residual(self, args: Arguments) -> None:
        """A residual block of a model that may be tuned is called; arguments of RESIDUAL_LAYOUT.

        What its operators would be called with channels last is measured before the format is chosen by it.
        """
        self._note(self._images, args)

    def note_attention(self, args: Arguments) -> None:
        """The same of an attention part, and of its weights packed; arguments of PROJECTIONS."""
        self._note(self._projections, args)

    def _note(self, formats: Formats, args: Arguments) -> None:
        if not formats.note(args):
            return
        question = formats.way.question
        with contextlib.suppress(*OUT_OF_MEMORY):
            if question.others(*args):
                for operator, inner in formats.way.calls(*args):
                    self._tuner.note(operator, inner)
        self._tuner.note(question, args)

    def verdict(self, operator: Operator, args: Arguments) -> dict[str, float] | None:
        """Milliseconds of a block by how its weights lie (formats.Measured)."""
        verdict = self._tuner.verdict(operator, args)
        if verdict is None:
            return None
        ms = dict(verdict.ms)
        first = [ms.pop(name) for name in (AS_LOADED, layout.CHANNELS_FIRST) if name in ms]
        return ms | ({AS_LOADED: min(first)} if first else {})

    def rest(self) -> None:
        """Asks for nothing more and lays weights as they were, where nobody wants us now."""
        self.choice.rest()
        self._lay_back()

    def _lay_back(self) -> None:
        if self.choice.activity.elsewhere:  # a later call does it
            return
        self._move(Formats.undo)

    def _move(self, lay: Callable[[Formats], bool], patience_s: float = 0.0) -> bool:
        """Has weights laid; False if somebody else writes to them for longer than that."""
        if not self.weights.acquire(timeout=patience_s):
            return False
        try:
            moved = [lay(each) for each in self._formats]
        finally:
            self.weights.release()
        if any(moved):
            self._changed()
        return True

    def apply(self, options: Options, models: Sequence[tuple[str, nn.Module]]) -> None:
        """Puts what was found out into effect between pictures; models: whose weights may be laid anew."""
        self.choice.apply()
        version = self._tuner.version
        self._tuner.apply()
        if self._tuner.version != version:
            self._changed()
        self._lay(options, models)

    def make_up(self, options: Options, models: Sequence[tuple[str, nn.Module]]) -> None:
        """Lays weights where LoRAs were being written when `apply` was called: before the first step."""
        if self.is_put_off:
            self._lay(options, models)

    def _lay(self, options: Options, models: Sequence[tuple[str, nn.Module]]) -> None:
        self.is_put_off = False
        if not (options.enabled and options.code in _TUNES):
            self._lay_back()
        elif not self.choice.activity.elsewhere:  # where a preview reads weights, the next picture will do
            self.is_put_off = not self._move(lambda each: each.apply(models))

    def finish(self, timeout_s: float | None = None, tell: Callable[[int], None] | None = None) -> bool:
        """Measures and compiles all that calls so far have asked for; whether that was done in time.

        tell: hears what is left.
        """
        began = time.monotonic()

        def tell_all(left: int) -> None:
            if tell is not None:
                tell(left + self._tuner.pending)

        def left_s() -> float | None:
            return None if timeout_s is None else max(0.0, timeout_s - (time.monotonic() - began))

        is_compiled = self.choice.finish(timeout_s, tell_all)
        is_measured = self._tuner.finish(left_s(), tell)
        self.choice.go_on()
        return self.choice.finish(left_s(), tell_all) and is_compiled and is_measured

    def clear(self) -> int:
        """Forgets what was measured, here and on disk; returns how many verdicts there were."""
        count = self.choice.clear() + self._tuner.clear()
        for each in self._formats:
            each.ask_again()
        return count

    def cancel(self) -> None:
        """Stops measuring, until a call asks for it again, and lays weights as they were."""
        self.choice.cancel()
        self._tuner.cancel()
        self._move(Formats.undo, _PATIENCE_S)

    @property
    def _formats(self) -> tuple[Formats, ...]:
        return self._images, self._projections

    def report(self) -> TuningReport:
        """What computes operators and how the weights of models lie, and why."""
        images, projections = (each.report() for each in self._formats)
        formats = [
            FormatCase(model, *images.get(model, _NONE), *projections.get(model, _NONE))
            for model in dict.fromkeys((*images, *projections))
        ]
        refused = [reason for asked in list(self._asked.values()) for reason in asked.refused()]
        tuning = self._tuner.report()
        questions = {each.way.question.name for each in self._formats}
        cases = [case for case in tuning.cases if case.operator not in questions]
        return replace(tuning, cases=cases, formats=formats, refused=refused)
