"""Finds the webui that was named, or that this extension stands in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from lib_accel.doctor.facts import Webui

VARIABLE = "SD_WEBUI_ROOT"

# What a folder must hold to be taken for a webui.
_FILES = ("launch.py", "modules/processing.py")


def find_webui(named: str | None, variable: str | None, us: Path) -> Webui:
    """The webui that `--webui` names, or else the variable, or else the one whose extensions hold `us`.

    us: this extension's folder, as it is reached: a link from the extensions folder counts.
    """
    if named is not None:
        return _look_at(Path(named).expanduser(), "--webui", us)
    if variable:
        return _look_at(Path(variable).expanduser(), f"the variable {VARIABLE}", us)
    if us.parent.name == "extensions" and not lacks(us.parent.parent):
        return _look_at(us.parent.parent, "this folder", us)
    return Webui()


def _look_at(root: Path, found_by: str, us: Path) -> Webui:
    lacking = lacks(root)
    if lacking:
        return Webui(found_by, lacking)
    extensions = root / "extensions"
    return Webui(
        found_by,
        version=_version(root),
        is_forge=(root / "modules_forge").is_dir(),
        has_controlnet=(extensions / "sd-webui-controlnet" / "scripts" / "controlnet.py").is_file(),
        has_us=extensions.is_dir() and us.resolve() in [child.resolve() for child in extensions.iterdir()],
    )


def lacks(root: Path) -> tuple[str, ...]:
    """The files that a folder would have if it were a webui's, and has not."""
    return tuple(name for name in _FILES if not (root / name).is_file())


def _version(root: Path) -> str | None:
    """As its change log says, or else its git tag."""
    log = root / "CHANGELOG.md"
    if log.is_file():
        with log.open(encoding="utf-8", errors="replace") as lines:
            found = re.match(r"#+\s*v?(\d+(\.\d+)+)", next(lines, ""))
        if found:
            return found[1]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    done = subprocess.run(
        [git, "-C", os.fspath(root), "describe", "--tags", "--abbrev=0"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    return done.stdout.strip().removeprefix("v") or None
