"""A program may end at any moment while graphs are made, and ends as it would without us."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

_SCRIPT = """
import sys, threading, time
sys.modules["xformers"] = None
import torch
import lib_accel
from lib_accel.graphs.workshop import workshop_of_this_process
from tests.diffusers import models

torch.set_num_threads(1)
pipe = models.own_pipeline()
handle = lib_accel.accelerate(pipe, code="compiled")
models.picture(pipe, steps=2)
assert handle.report().graphs.pending
moments = {
    "before anything is made": lambda: True,
    "made elsewhere": lambda: any(each.name == "accel-watch" for each in threading.enumerate()),
    "made here": lambda: workshop_of_this_process().making is not None,
}
while not moments[sys.argv[1]]():
    time.sleep(0.01)
assert handle.report().graphs.pending
"""


@pytest.mark.parametrize("moment", ["before anything is made", "made elsewhere", "made here"])
def test_a_program_ends_normally_while_graphs_are_made(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    found = subprocess.run(
        [sys.executable, "-c", _SCRIPT, moment], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
