"""How far a command is, on stderr: a bar in a terminal, a line a step elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm


class Progress:
    """Counts the parts of a command as they begin."""

    def __init__(self, total: int) -> None:
        self._total, self._begun = total, 0
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=self._total, file=sys.stderr, leave=False, bar_format="{l_bar}{bar}| {n}/{total}"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin(self, part: str) -> None:
        """Says which part begins now."""
        if self._bar is None:
            self._begun += 1
            print(f"[{self._begun}/{self._total}] {part}", file=sys.stderr, flush=True)
        else:
            self._bar.update(1)
            self._bar.set_description(part)  # last, since this draws at once
