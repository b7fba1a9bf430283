"""A row of the test, and the group of rows that share two servers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .picture import Picture
from .steps import Draw, Step


@dataclass(frozen=True)
class Row:
    """Steps that both servers take in the same order; pictures and printed text must then be the same."""

    name: str
    steps: tuple[Step, ...]
    tracebacks: bool = False  # whether our log may have more of them than that of stock


def row(name: str, *steps: Step | Picture, tracebacks: bool = False) -> Row:
    """A row; pictures among the steps are drawn."""
    return Row(name, tuple(Draw(step) if isinstance(step, Picture) else step for step in steps), tracebacks)


@dataclass(frozen=True)
class Group:
    """Rows for one way to start the webui; without ``stock`` only ours is started."""

    name: str
    rows: tuple[Row, ...]
    checkpoint: str = "tiny"
    flags: tuple[str, ...] = ()
    ui: bool = False
    api: bool = True
    stock: bool = True
    auth: str = ""
    others: tuple[str, ...] = ()  # folders of other extensions, which both servers get too
    models: tuple[str, ...] = field(default=("tiny",))


def group(name: str, rows: Iterable[Row], **how: object) -> Group:
    """A group of these rows."""
    return Group(name, tuple(rows), **how)  # type: ignore[arg-type]
