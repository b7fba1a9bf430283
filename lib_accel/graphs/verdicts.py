"""What was found out on this machine with these versions, kept on disk from start to start."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import platform
import secrets
import sys
import tempfile
import threading
from collections.abc import Container, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lib_accel import __version__
from lib_accel.device import matmul_precision
from lib_accel.graphs.proof import COMPILED_CODES, DIRECT, HOST, Verdict
from lib_accel.requirements import installed_version

_log = logging.getLogger(__name__)

_SCHEMA = 1
_MOST_TRIES = 2  # of what ends the process: once may be somebody who switched it off
_MOST_ENTRIES = 4000
_TOKEN = secrets.token_hex(8)  # of this process
_CODES = (HOST, DIRECT, *COMPILED_CODES)


def folder_or(usual: Path) -> Path:
    """Where verdicts are kept: what ACCEL_CACHE_DIR says, or the usual folder."""
    chosen = os.environ.get("ACCEL_CACHE_DIR")
    return Path(chosen) if chosen else usual


def default_folder() -> Path:
    """Where verdicts are kept that no host has a place for: ACCEL_CACHE_DIR, or the user's caches."""
    by_platform = {
        "win32": os.environ.get("LOCALAPPDATA", ""),
        "darwin": str(Path.home() / "Library" / "Caches"),
    }
    base = by_platform.get(sys.platform) or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return folder_or(Path(base) / "sd-webui-accel")


def surroundings(device: torch.device) -> str:
    """What a verdict holds for: the device, and the versions that made the graphs."""
    parts = [f"accel {__version__}", f"torch {torch.__version__}", f"triton {installed_version('triton')}"]
    parts.append(f"matmul {matmul_precision()}, cudnn {torch.backends.cudnn.benchmark}")
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        parts.append(f"{torch.cuda.get_device_name(device)} {major}.{minor}")
    else:
        capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
        parts.append(f"{platform.machine()} {capability} {torch.get_num_threads()} threads")
    return ", ".join(parts)


class _Kept(NamedTuple):
    """The content of a file: verdicts, and trials that were begun, by name."""

    verdicts: dict[str, dict[str, Any]]
    trials: dict[str, dict[str, Any]]


class Verdicts:
    """The verdicts of a folder by name. What cannot be read or written is forgotten, and said once.

    A name that was being tried twice when a process ended stays at DIRECT: what it tried may have ended it.
    Names that begin with a prefix of their own may have other codes; see `beginning`.
    """

    def __init__(self, folder: Path | None) -> None:
        """`folder`: made when first written to; None keeps verdicts in memory only."""
        self._file = None if folder is None else folder / "verdicts.json"
        self._lock = threading.Lock()
        self._is_told = False  # that it cannot be written
        self._kept: _Kept | None = None
        self._changed: set[str] = set()  # names that this process has written or removed

    def get(self, name: str, *, codes: Container[str] | None = _CODES, usual: str = DIRECT) -> Verdict | None:
        """What is known under that name, if its code is among `codes`, None for any.

        usual: the code of what ended the process when it was tried.
        """
        with self._lock:
            kept = self._loaded()
            trial, entry = kept.trials.get(name), kept.verdicts.get(name)
        if trial is not None and _tries(trial) >= _MOST_TRIES and _is_over(trial):
            return Verdict(usual, "the program ended twice while this was tried")
        return _verdict(entry, codes)

    def beginning(self, prefix: str) -> dict[str, Verdict]:
        """The verdicts whose names begin so, whatever their codes, by name."""
        with self._lock:
            kept = self._loaded().verdicts.items()
            found = {name: _verdict(entry, None) for name, entry in kept if name.startswith(prefix)}
        return {name: verdict for name, verdict in found.items() if verdict is not None}

    def put(self, name: str, verdict: Verdict) -> None:
        """Keeps what was found out, and ends the trial."""
        with self._lock:
            kept = self._loaded()
            kept.verdicts[name] = _plain(asdict(verdict))
            kept.trials.pop(name, None)
            self._write(name)

    def begin_trial(self, name: str) -> None:
        """Notes that something is tried under that name; `put` or `end_trial` follows, if we live."""
        with self._lock:
            trials = self._loaded().trials
            before = trials.get(name)
            tries = 0 if before is None else _tries(before) if _is_over(before) else _tries(before) - 1
            trials[name] = {"process": os.getpid(), "token": _TOKEN, "tries": tries + 1}
            self._write(name)

    def lose_trial(self, name: str) -> None:
        """What was tried ended the process that tried it, which was another than this one."""
        with self._lock:
            trials = self._loaded().trials
            trials[name] = {"process": None, "tries": _tries(trials.get(name, {})) + 1}
            self._write(name)

    def end_trial(self, name: str) -> None:
        """Nothing was found out, and nothing happened."""
        with self._lock:
            trials = self._loaded().trials
            if trials.get(name, {}).get("token") == _TOKEN:
                del trials[name]
                self._write(name)

    def clear(self) -> int:
        """Forgets everything; returns how many verdicts that were."""
        with self._lock:
            kept = self._loaded()
            names, count = {*kept.verdicts, *kept.trials}, len(kept.verdicts)
            self._kept = _Kept({}, {})
            self._write(*names)
        return count

    def __len__(self) -> int:
        with self._lock:
            return len(self._loaded().verdicts)

    def _loaded(self) -> _Kept:
        if self._kept is None:
            self._kept = _read(self._file)
        return self._kept

    def _write(self, *names: str) -> None:
        """Writes these names, and leaves what other processes wrote meanwhile under others."""
        self._changed.update(names)
        if self._file is None:
            return
        others, own = _read(self._file), self._loaded()
        verdicts = self._merged(others.verdicts, own.verdicts)
        trials = self._merged(others.trials, own.trials)
        try:
            _replace(self._file, json.dumps({"schema": _SCHEMA, "verdicts": verdicts, "trials": trials}))
        except OSError as error:  # another process may be reading it; the next one writes all
            if not self._is_told:
                self._is_told = True
                _log.warning("choices are not kept: %s: %s", self._file, error.strerror)

    def _merged(self, others: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: entry for name, entry in others.items() if name not in self._changed}
        kept |= {name: entry for name, entry in own.items() if name in self._changed}
        return dict(list(kept.items())[-_MOST_ENTRIES:])


def _read(file: Path | None) -> _Kept:
    if file is None:
        return _Kept({}, {})
    try:
        content = json.loads(file.read_text("utf-8"))
        if content["schema"] == _SCHEMA:
            return _Kept(_entries(content["verdicts"]), _entries(content["trials"]))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("choices are made anew: %s: %s: %s", file, type(error).__name__, error)
    return _Kept({}, {})


def _entries(content: Any) -> dict[str, dict[str, Any]]:
    return {str(name): dict(entry) for name, entry in content.items()}


def _tries(trial: Mapping[str, Any]) -> int:
    tries = trial.get("tries", 0)
    return tries if type(tries) is int else 0


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
    if process == os.getpid():  # in a container, a program has the same number at each start
        return trial.get("token") != _TOKEN
    if os.name != "posix" or type(process) is not int:
        return True  # elsewhere, to ask costs more than to try once less
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _verdict(entry: Mapping[str, Any] | None, codes: Container[str] | None) -> Verdict | None:
    code = None if entry is None else entry.get("code")
    if entry is None or not isinstance(code, str) or not (codes is None or code in codes):
        return None
    ms = entry.get("ms")
    return Verdict(
        code,
        str(entry.get("reason", "")),
        entry.get("difference"),
        entry.get("tolerance"),
        dict(ms) if isinstance(ms, dict) else {},
    )


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it, which knows no infinity."""
    is_infinite = isinstance(values["difference"], float) and not math.isfinite(values["difference"])
    return values | {"ms": dict(values["ms"]), "difference": None if is_infinite else values["difference"]}
