"""All that is measured on this machine: codes of blocks, what computes operators, memory formats.

It is looked for while pictures are drawn, measured beside them, kept on disk, and comes into effect between
two pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from lib_accel.blocks.operators.attention import ATTENTION, SAGE_ATTENTION, why_not_sage
from lib_accel.blocks.operators.layout import RESIDUAL_LAYOUT
from lib_accel.blocks.operators.operator import Arguments, Operator, Tuned
from lib_accel.choice import Choice
from lib_accel.formats import Formats
from lib_accel.graphs.launcher import Launcher
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.graphs.workshop import workshop_of_this_process
from lib_accel.host import Host
from lib_accel.options import Options
from lib_accel.report import FormatCase, TuningReport
from lib_accel.tuning.asked import Asked
from lib_accel.tuning.tuner import Tuner

SAGE = "sage"  # a value of the option `attention`

# Values of the option `code` with which operators are computed by what was measured to be the fastest.
_TUNES = ("auto", "measured", "compiled")


class Measured:
    """Of one engine. Calls may come from any thread."""

    def __init__(
        self,
        host: Host,
        verdicts: Verdicts,
        launcher_of: Callable[[torch.device], Launcher | None],
        choice: Choice | None = None,
        tuner: Tuner | None = None,
    ) -> None:
        """`launcher_of`: what replays calls on a device. choice, tuner: None for those of this process."""
        self.choice = choice or Choice(verdicts, workshop_of_this_process(), host.is_busy, launcher_of)
        self._tuner = tuner or Tuner(
            verdicts,
            self.choice.activity,
            lambda: host.is_busy() or self.choice.is_compiling,  # which would disturb the times
            lambda device: launcher_of(device) is not None,
        )
        self._formats = Formats(self, verdicts)
        self._asked: Asked | None = None  # the latest

    def tuned(self, options: Options, device: torch.device) -> Tuned | None:
        """What computes operators on a device, the same object as long as it holds; None for plain torch."""
        if options.code not in _TUNES:
            self._lay_back()
            return None
        choices = self._tuner.tuned(device)
        if choices is None or options.attention != SAGE:
            return choices
        if self._asked is None or self._asked.measured is not choices:
            self._asked = Asked(choices, ATTENTION, SAGE_ATTENTION, why_not_sage)
        return self._asked

    def note_residual(self, args: Arguments) -> None:
        """A residual block of a model that may be tuned is called; arguments of RESIDUAL_LAYOUT."""
        if self._formats.note(args):
            self._tuner.note(RESIDUAL_LAYOUT, args)

    def verdict(self, operator: Operator, args: Arguments) -> dict[str, float] | None:
        """Milliseconds by implementation (formats.Measured)."""
        verdict = self._tuner.verdict(operator, args)
        return None if verdict is None else dict(verdict.ms)

    def rest(self) -> None:
        """Asks for nothing more and lays weights as they were, where nobody wants us now."""
        self.choice.rest()
        self._lay_back()

    def _lay_back(self) -> None:
        if not self.choice.activity.elsewhere:  # else a later call does it
            self._formats.undo()

    def apply(self, options: Options, models: Sequence[tuple[str, nn.Module]]) -> None:
        """Puts what was found out into effect between pictures; models: whose weights may be laid anew."""
        self.choice.apply()
        self._tuner.apply()
        if not (options.enabled and options.code in _TUNES):
            self._lay_back()
        elif not self.choice.activity.elsewhere:  # a preview reads weights; the next picture is soon enough
            self._formats.apply(models)

    def finish(self, timeout_s: float | None = None, tell: Callable[[int], None] | None = None) -> bool:
        """Measures and compiles all that calls so far have asked for; whether that was done in time.

        tell: hears what is left.
        """
        began = time.monotonic()

        def tell_all(left: int) -> None:
            if tell is not None:
                tell(left + self._tuner.pending)

        is_compiled = self.choice.finish(timeout_s, tell_all)
        left_s = None if timeout_s is None else max(0.0, timeout_s - (time.monotonic() - began))
        return self._tuner.finish(left_s, tell) and is_compiled

    def clear(self) -> int:
        """Forgets what was measured, here and on disk; returns how many verdicts there were."""
        count = self.choice.clear() + self._tuner.clear()
        self._formats.ask_again()
        return count

    def cancel(self) -> None:
        """Stops measuring, until a call asks for it again, and lays weights as they were."""
        self.choice.cancel()
        self._tuner.cancel()
        self._formats.undo()

    def report(self) -> TuningReport:
        """What computes operators and how the weights of models lie, and why."""
        formats = [FormatCase(model, *each) for model, each in self._formats.report().items()]
        refused = [] if self._asked is None else self._asked.refused()
        tuning = self._tuner.report()
        cases = [case for case in tuning.cases if case.operator != RESIDUAL_LAYOUT.name]
        return replace(tuning, cases=cases, formats=formats, refused=refused)
