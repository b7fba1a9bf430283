"""Winners that were measured on another machine with the same GPU: they hold until this one has measured.

A file a GPU, written by `python -m lib_accel.tuning ship` from what a machine has found out, and read once.
What is of other versions of torch or Triton, up to their second number, or of other switches of torch, does
not count; nor does a winner that is not offered for a call here.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lib_accel.blocks.operators.layout import RESIDUAL_LAYOUT
from lib_accel.blocks.operators.projections import PROJECTIONS
from lib_accel.device import device_name
from lib_accel.graphs.proof import Verdict
from lib_accel.requirements import installed_version
from lib_accel.tuning.contest import TORCH
from lib_accel.tuning.settings import Settings

_log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "winners"
_SCHEMA = 1
_QUESTIONS = (RESIDUAL_LAYOUT.name, PROJECTIONS.name)  # of how weights lie, which no block calls


class Kind(NamedTuple):
    """Calls of an operator that are equally well computed by the same implementation."""

    operator: str
    size_class: tuple[str, ...]  # of signature.size_class


class Where(NamedTuple):
    """What winners hold for."""

    gpu: str
    torch_minor: str  # first two numbers of the version
    triton_minor: str  # likewise; "" without it
    is_launched: bool  # by recordings, where calls are replayed
    settings: str  # Settings, as JSON

    @classmethod
    def here(cls, device: torch.device, is_launched: bool, settings: Settings) -> Where:
        """This process on a device."""
        triton = installed_version("triton") or ""
        return cls(
            device_name(device),
            _minor(torch.__version__),
            _minor(triton),
            is_launched,
            json.dumps(settings, default=repr),
        )


@dataclass(frozen=True)
class Told(Verdict):
    """A verdict that says on disk what it is about, so that it can be shipped."""

    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, verdict: Verdict, where: Where, kind: Kind) -> Told:
        """The same with what it is about."""
        return cls(**vars(verdict), about={**where._asdict(), **kind._asdict()})


def winners(where: Where, folder: Path = FOLDER) -> Mapping[Kind, str]:
    """Codes of implementations that are shipped for these surroundings, by what they are for."""
    return _read(file_of(where.gpu, folder)).get(where, {})


def file_of(gpu: str, folder: Path = FOLDER) -> Path:
    """Where the winners of a GPU are, by the name that torch gives it."""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower())}.json"


def ship(kept: Iterable[Mapping[str, Any]], folder: Path = FOLDER) -> list[Path]:
    """Adds the winners among verdicts, as they are kept on disk, to the files of their GPUs; returns those.

    Verdicts that do not say what they are about are left out, as are those for plain torch, and those of how
    weights lie, which a model's sums decide.
    """
    found: dict[Path, dict[Where, dict[Kind, dict[str, Any]]]] = {}
    for verdict in kept:
        about = verdict.get("about")
        if not about or verdict["code"] == TORCH or about["operator"] in _QUESTIONS:
            continue
        where = Where(*(about[name] for name in Where._fields))
        kind = Kind(about["operator"], tuple(about["size_class"]))
        ms = {name: verdict["ms"][name] for name in (TORCH, verdict["code"]) if name in verdict["ms"]}
        entry = {**kind._asdict(), "winner": verdict["code"], "ms": ms}
        found.setdefault(file_of(where.gpu, folder), {}).setdefault(where, {})[kind] = entry
    for file, new in found.items():
        _write(file, new)
    return list(found)


def _write(file: Path, new: Mapping[Where, Mapping[Kind, dict[str, Any]]]) -> None:
    """Writes them in the place of those of the same kind; others in the file stay."""
    sets: dict[Where, dict[Kind, dict[str, Any]]] = _entries(file) if file.exists() else {}
    for where, entries in new.items():
        sets.setdefault(where, {}).update(entries)
    gpu = next(iter(new)).gpu
    parts = []
    for where, entries in sorted(sets.items()):
        head = json.dumps({name: value for name, value in where._asdict().items() if name != "gpu"})
        lines = ",\n".join(json.dumps(entries[kind]) for kind in sorted(entries))
        parts.append(f'{head[:-1]}, "winners": [\n{lines}\n]}}')
    head = json.dumps({"schema": _SCHEMA, "gpu": gpu})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'{head[:-1]}, "sets": [\n' + ",\n".join(parts) + "\n]}\n", "utf-8")


@cache
def _read(file: Path) -> Mapping[Where, Mapping[Kind, str]]:
    """The codes in a file; none if it is missing or broken, which is logged."""
    try:
        return {
            where: {kind: str(entry["winner"]) for kind, entry in entries.items() if entry["winner"] != TORCH}
            for where, entries in _entries(file).items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("no winners are shipped: %s: %s: %s", file, type(error).__name__, error)
        return {}


def _entries(file: Path) -> dict[Where, dict[Kind, dict[str, Any]]]:
    content = json.loads(file.read_text("utf-8"))
    if content["schema"] != _SCHEMA:
        raise ValueError(f"schema is {content['schema']}, needs {_SCHEMA}")
    sets: dict[Where, dict[Kind, dict[str, Any]]] = {}
    for each in content["sets"]:
        where = Where(content["gpu"], *(each[name] for name in Where._fields[1:]))
        sets[where] = {
            Kind(entry["operator"], tuple(entry["size_class"])): dict(entry) for entry in each["winners"]
        }
    return sets


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])
