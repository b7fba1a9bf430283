"""Runs the tests that launch kernels in Triton's interpreter, in a process of their own.

Triton decides when it is imported, once for a process, whether it interprets; and torch may have imported it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in Path(__file__).parent.glob("test_*_kernel.py"))


@pytest.mark.skipif(sys.platform != "linux", reason="requirements-dev.txt has Triton for Linux only")
@pytest.mark.parametrize("file", FILES)
def test_kernels_pass_their_tests_in_the_interpreter(file: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", file]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
    assert "deselected" not in done.stdout


def test_every_operation_has_a_file_of_such_tests() -> None:
    rooms = {path.stem for path in (ROOT / "lib_accel/kernels/programs").glob("[a-z]*.py")}
    assert rooms <= {Path(file).stem.removeprefix("test_").removesuffix("_kernel") for file in FILES}
