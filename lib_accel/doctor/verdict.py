"""What is said about one subject."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["yes", "limited", "no"]


@dataclass(frozen=True)
class Verdict:
    """Whether something can be used, what was found, and what to do if it cannot be used in full."""

    status: Status
    finding: str
    fix: str = ""

    def __post_init__(self) -> None:
        assert self.status == "yes" or self.fix, f"no fix for: {self.finding}"


@dataclass(frozen=True)
class Row:
    """A verdict with its subject."""

    what: str
    verdict: Verdict
