"""What was found out about a block on this machine with these versions, kept on disk from start to start."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import platform
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lib_accel import __version__
from lib_accel.graphs.proof import COMPILED, DIRECT, HOST, Verdict
from lib_accel.requirements import installed_version

_log = logging.getLogger(__name__)

_SCHEMA = 1
_TRYING = "trying"  # instead of a code, while something runs that might end the process
_MOST_ENTRIES = 4000


def default_folder() -> Path:
    """Where verdicts are kept that no host has a place for: ACCEL_CACHE_DIR, or the user's caches."""
    if chosen := os.environ.get("ACCEL_CACHE_DIR"):
        return Path(chosen)
    by_platform = {
        "win32": os.environ.get("LOCALAPPDATA", ""),
        "darwin": str(Path.home() / "Library" / "Caches"),
    }
    base = by_platform.get(sys.platform) or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sd-webui-accel"


def surroundings(device: torch.device) -> str:
    """What a verdict holds for: the device, and the versions that made the graphs."""
    parts = [f"accel {__version__}", f"torch {torch.__version__}", f"triton {installed_version('triton')}"]
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        parts.append(f"{torch.cuda.get_device_name(device)} {major}.{minor}")
    else:
        capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
        parts.append(f"{platform.machine()} {capability} {torch.get_num_threads()} threads")
    return ", ".join(parts)


class Verdicts:
    """The verdicts of a folder by name. What cannot be read or written is forgotten, and said once.

    A name that was being tried when the process ended stays at DIRECT: what it tried may have ended it.
    """

    def __init__(self, folder: Path | None) -> None:
        """`folder`: made when first written to; None keeps verdicts in memory only."""
        self._file = None if folder is None else folder / "verdicts.json"
        self._lock = threading.Lock()
        self._is_writable = True
        self._entries: dict[str, dict[str, Any]] | None = None
        self._changed: set[str] = set()  # names that this process has written or removed
        self._interrupted: frozenset[str] = frozenset()

    def get(self, name: str) -> Verdict | None:
        """What is known under that name."""
        with self._lock:
            entry = self._loaded().get(name)
            if name in self._interrupted:
                return Verdict(DIRECT, "the program ended while this was tried; clear the cache to try again")
        return _verdict(entry)

    def put(self, name: str, verdict: Verdict) -> None:
        """Keeps what was found out."""
        with self._lock:
            self._loaded()[name] = _plain(asdict(verdict))
            self._interrupted -= {name}
            self._write(name)

    def begin_trial(self, name: str) -> None:
        """Notes that something is tried under that name; `put` or `end_trial` follows, if we live."""
        with self._lock:
            entries = self._loaded()
            if name not in entries:
                entries[name] = {"code": _TRYING, "process": os.getpid()}
                self._write(name)

    def end_trial(self, name: str) -> None:
        """Nothing was found out, and nothing happened."""
        with self._lock:
            entries = self._loaded()
            if entries.get(name) == {"code": _TRYING, "process": os.getpid()}:
                del entries[name]
                self._write(name)

    def clear(self) -> int:
        """Forgets everything; returns how much that was."""
        with self._lock:
            names = list(self._loaded())
            self._entries, self._interrupted = {}, frozenset()
            self._write(*names)
        return len(names)

    def __len__(self) -> int:
        with self._lock:
            return len(self._loaded())

    def _loaded(self) -> dict[str, dict[str, Any]]:
        if self._entries is None:
            self._entries = _read(self._file)
            self._interrupted = frozenset(
                name
                for name, entry in self._entries.items()
                if entry.get("code") == _TRYING and _is_over(entry)
            )
        return self._entries

    def _write(self, *names: str) -> None:
        """Writes these names, and leaves what other processes wrote meanwhile under others."""
        self._changed.update(names)
        if self._file is None or not self._is_writable:
            return
        others = {name: entry for name, entry in _read(self._file).items() if name not in self._changed}
        own = {name: entry for name, entry in self._loaded().items() if name in self._changed}
        entries = dict(list((others | own).items())[-_MOST_ENTRIES:])
        try:
            _replace(self._file, json.dumps({"schema": _SCHEMA, "verdicts": entries}, indent=1))
        except OSError as error:
            self._is_writable = False
            _log.warning("choices are not kept: %s: %s", self._file, error.strerror)


def _read(file: Path | None) -> dict[str, dict[str, Any]]:
    if file is None:
        return {}
    try:
        content = json.loads(file.read_text("utf-8"))
        if content["schema"] != _SCHEMA:
            return {}
        return {str(name): dict(entry) for name, entry in content["verdicts"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("choices are made anew: %s: %s: %s", file, type(error).__name__, error)
        return {}


def _replace(file: Path, content: str) -> None:
    """Writes a file at one blow, and leaves no other behind."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as part:
            part.write(content)
        os.replace(name, file)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _is_over(trial: Mapping[str, Any]) -> bool:
    """Whether the process that began a trial is gone."""
    process = trial.get("process")
    if os.name != "posix" or type(process) is not int:
        return True  # elsewhere, to ask costs more than to try once less
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return process == os.getpid()  # a new process of that number


def _verdict(entry: Mapping[str, Any] | None) -> Verdict | None:
    if entry is None or entry.get("code") not in (HOST, DIRECT, COMPILED):
        return None
    ms = entry.get("ms")
    return Verdict(
        entry["code"],
        str(entry.get("reason", "")),
        entry.get("difference"),
        entry.get("tolerance"),
        dict(ms) if isinstance(ms, dict) else {},
    )


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it, which knows no infinity."""
    is_infinite = isinstance(values["difference"], float) and not math.isfinite(values["difference"])
    return values | {"ms": dict(values["ms"]), "difference": None if is_infinite else values["difference"]}
