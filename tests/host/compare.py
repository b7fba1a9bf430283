"""Compare what a row did on the stock server and on ours."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .kit.client import diff
from .outcome import Outcome

MAX_STEPS = 2.0  # largest difference of a pixel, in steps of an 8-bit channel
MEAN_STEPS = 0.05  # mean over a picture
VALUES = 1e-5  # largest difference of two numbers, as a part of the largest number


@dataclass
class Line:
    """One line of the table: a step of a row on both servers."""

    group: str
    row: str
    step: str
    max: float | None = None  # None where there is no picture
    mean: float | None = None
    direct: int | None = None  # None where the extension is not there
    host: int | None = None
    replayed: int | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    values: float | None = None  # largest difference of numbers, as a part of the largest
    stock_s: float = 0.0
    ours_s: float = 0.0
    launches: dict[str, Any] = field(default_factory=dict)  # of a group with the stand-in
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Values for a JSON file."""
        return asdict(self) | {"ok": not self.problems}

    def __str__(self) -> str:
        """Format as a line of the table."""
        mean = _number(self.mean, ".4f") if self.values is None else _number(self.values, ".0e")
        figures = f"{_number(self.max, '.0f'):>4} {mean:>7}"
        blocks = (
            f"{_number(self.direct, 'd'):>6} {_number(self.host, 'd'):>6} {_number(self.replayed, 'd'):>8}"
        )
        verdict = "ok" if not self.problems else "FAILED: " + "; ".join(self.problems)
        return f"{self.group + '/' + self.row:44.44} {self.step:34.34} {figures} {blocks}  {verdict}"


HEADING = f"{'row':44} {'step':34} {'max':>4} {'mean':>7} {'direct':>6} {'host':>6} {'replayed':>8}  verdict"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def compare(group: str, row: str, stock: Outcome | None, ours: Outcome) -> Line:
    """The line for one step; ``stock`` is None in a group without stock server."""
    line = Line(group, row, ours.label, ours_s=ours.seconds, problems=[*ours.problems])
    if stock is not None:
        line.problems += stock.problems
        line.stock_s = stock.seconds
        _compare_pictures(line, stock, ours)
        _compare_values(line, stock, ours)
        if stock.text != ours.text:
            line.problems.append(f"stock printed {stock.text[-200:]!r}, ours {ours.text[-200:]!r}")
    if ours.blocks is not None:
        line.direct, line.host, line.reasons = ours.blocks.direct, ours.blocks.host, ours.blocks.reasons
        line.replayed = ours.blocks.replayed
        line.problems += ours.speed.problems(ours.blocks)
    return line


def _compare_pictures(line: Line, stock: Outcome, ours: Outcome) -> None:
    if len(stock.images) != len(ours.images):
        line.problems.append(f"stock gave {len(stock.images)} pictures, ours {len(ours.images)}")
    differences = [diff(*pair) for pair in zip(stock.images, ours.images, strict=False)]
    if not differences:
        return
    line.max = max(far.max for far in differences)
    line.mean = max(far.mean for far in differences)
    if line.max > MAX_STEPS or line.mean > MEAN_STEPS:
        line.problems.append(f"pictures differ by {line.max:.0f} at most, {line.mean:.4f} on average")


def _compare_values(line: Line, stock: Outcome, ours: Outcome) -> None:
    if stock.values is None or ours.values is None:
        return
    if stock.values.shape != ours.values.shape:
        line.problems.append(f"stock gave {stock.values.size} numbers, ours {ours.values.size}")
        return
    line.values = float(abs(stock.values - ours.values).max() / abs(stock.values).max())
    if not line.values <= VALUES:  # nor is NaN
        line.problems.append(f"numbers differ by {line.values:.1e} of the largest")
