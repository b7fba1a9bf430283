"""Packages are imported in a child, which may die of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_accel.doctor import imports
from lib_accel.doctor.imports import PACKAGES, find_packages, try_imports

MODULES = {
    "good": "",
    "loud": "import os\nprint('[\"good\", \"a lie\"]')\nos.write(1, b'more')",
    "raising": "raise ImportError('no such\\n  thing')",
    "leaving": "raise SystemExit('bye')",
    "killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "ended": "import os\nos._exit(3)",
    "slow": "import time\ntime.sleep(60)",
}


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, source in MODULES.items():
        tmp_path.joinpath(f"{name}.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_good_modules_have_no_fault_whatever_they_print() -> None:
    assert try_imports(["loud", "good"]) == {"loud": None, "good": None}


def test_no_modules_start_no_child() -> None:
    assert try_imports([], timeout_s=0) == {}


@pytest.mark.parametrize(
    ("module", "fault"),
    [
        ("raising", "ImportError: no such thing"),
        ("leaving", "SystemExit: bye"),
        ("absent", "ModuleNotFoundError: No module named 'absent'"),
        ("ended", "its import ends the process with status 3"),
    ],
)
def test_a_bad_module_has_its_fault_and_the_next_one_is_still_tried(module: str, fault: str) -> None:
    assert try_imports([module, "good"]) == {module: fault, "good": None}


@pytest.mark.skipif("os.name == 'nt'", reason="Windows has no signals that kill")
def test_a_module_that_is_killed_has_the_signal_as_its_fault() -> None:
    assert try_imports(["killed", "good"]) == {
        "killed": "its import ends the process with SIGKILL",
        "good": None,
    }


def test_a_module_that_never_comes_back_is_given_up() -> None:
    results = try_imports(["good", "slow"], timeout_s=2)
    assert results == {"good": None, "slow": "its import took longer than 2 s"}


def test_packages_have_the_installed_version_and_the_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "PACKAGES", ("safetensors", "absent"))
    packages = find_packages()
    assert packages["safetensors"].version is not None
    assert packages["safetensors"].fault is None
    assert packages["absent"].version is None


def test_torch_is_tried_before_what_builds_on_it() -> None:
    assert PACKAGES[0] == "torch"
