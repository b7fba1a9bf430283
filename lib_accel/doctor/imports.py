"""Which packages can be imported, found out without importing them here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lib_accel.doctor.facts import Package
from lib_accel.requirements import installed_version

PACKAGES = (
    "torch",
    "triton",
    "xformers",
    "safetensors",
    "transformers",
    "accelerate",
    "diffusers",
    "peft",
)

TIMEOUT_S = 180.0  # for all of them; a cold disk takes a minute for torch and diffusers

_ABOVE_US = Path(__file__).absolute().parents[2]


def find_packages() -> dict[str, Package]:
    """What is installed of PACKAGES, and why it cannot be used, by module name."""
    versions = {module: installed_version(module) for module in PACKAGES}
    installed = [module for module in PACKAGES if versions[module] is not None]
    faults = try_imports(installed)
    return {module: Package(versions[module], faults.get(module)) for module in PACKAGES}


def try_imports(modules: Sequence[str], *, timeout_s: float = TIMEOUT_S) -> dict[str, str | None]:
    """What is wrong with each module, None for what can be imported.

    A module that ends the process has that as its fault, and the ones after it get another process.
    """
    results: dict[str, str | None] = {}
    while rest := [module for module in modules if module not in results]:
        lines, ending = _run_child(rest, timeout_s)
        results |= {line[0]: line[1] for line in lines if len(line) == 2}
        culprit = next((module for module in rest if module not in results), None)
        if culprit is not None:
            results[culprit] = ending
    return results


def _run_child(modules: Sequence[str], timeout_s: float) -> tuple[list[list[str]], str]:
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ABOVE_US), environment.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lib_accel.doctor.child", *modules],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=timeout_s,
        )
        output, ending = done.stdout, _ending(done.returncode)
    except subprocess.TimeoutExpired as error:
        output, ending = error.stdout or b"", f"its import took longer than {timeout_s:.0f} s"
    return [json.loads(line) for line in output.decode("utf-8").splitlines()], ending


def _ending(status: int) -> str:
    """What a process did that ended with this status in the middle of an import."""
    if status >= 0:
        return f"its import ends the process with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"its import ends the process with {name}"
