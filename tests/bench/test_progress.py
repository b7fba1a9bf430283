"""How far a command is, where there is no terminal."""

from __future__ import annotations

import pytest

from lib_accel.bench.progress import Progress


def test_each_part_is_a_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(2) as progress:
        progress.begin("first")
        progress.begin("second")
    assert capsys.readouterr() == ("", "[1/2] first\n[2/2] second\n")
