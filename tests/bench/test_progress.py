"""How far a command is: lines, or a bar where there is a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from lib_accel.bench.progress import Progress


def test_each_part_is_a_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(2) as progress:
        progress.begin("first")
        progress.begin("second")
    assert capsys.readouterr() == ("", "[1/2] first\n[2/2] second\n")


class Terminal(io.StringIO):
    """Takes what is written, and says that somebody watches."""

    def isatty(self) -> bool:
        return True


def test_in_a_terminal_the_part_stands_before_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(2) as progress:
        progress.begin("first")
        progress.begin("second")
        shown = terminal.getvalue().rsplit("\r", 1)[-1]
    assert shown.startswith("second: ")
    assert shown.endswith("| 2/2")


def test_the_bar_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(1) as progress:
        progress.begin("first")
    assert terminal.getvalue().rsplit("\r", 2)[-2].strip() == ""
