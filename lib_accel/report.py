"""What runs how, and why: counted while a picture is made, read by the status line, the API and the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass
class Tally:
    """Blocks by the code that they run."""

    direct: int = 0
    host: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # why blocks run as the host's modules

    def add(self, reasons: Sequence[str]) -> None:
        """Counts one block, at host speed for these reasons or direct if there are none."""
        if reasons:
            self.host += 1
            self.reasons.update(reasons)
        else:
            self.direct += 1

    def add_all(self, other: Tally) -> None:
        """Counts what another tally has counted."""
        self.direct += other.direct
        self.host += other.host
        if other.reasons:
            self.reasons.update(other.reasons)


@dataclass
class Generation(Tally):
    """What happened since the latest generation began."""

    model_calls: int = 0  # calls of UNets and control models
    fuse_s: float = 0.0  # seconds in which weights were made to carry the wanted networks
    load_s: float = 0.0  # seconds in which the host read networks
    networks: int = 0  # how many networks the weights carried last

    def copy(self) -> Generation:
        """The counters as they are now, while another thread goes on counting."""
        return replace(self, reasons=Counter(dict(self.reasons)))


@dataclass
class ModelReport:
    """One live model."""

    name: str
    blocks: Tally


@dataclass
class Report:
    """Everything that the status shows."""

    version: str
    enabled: bool
    stand_aside: list[str]
    models: list[ModelReport]
    generation: Generation

    @property
    def summary(self) -> str:
        """One line in plain words."""
        if not self.enabled:
            return "off"
        if self.stand_aside:
            return "standing aside: " + "; ".join(self.stand_aside)
        if not self.models:
            return "waiting for a model"
        done = self.generation
        if done.host and not done.direct:
            return "standing aside in the last picture: " + done.reasons.most_common(1)[0][0]
        parts = self._models_in_words()
        if done.networks:
            merged = f"{done.networks} LoRA{'s' if done.networks > 1 else ''} merged"
            parts.append(f"{merged} in {1000 * done.fuse_s:.0f} ms" if done.fuse_s >= 0.001 else merged)
        if done.host:
            parts.append(f"{_share(done.direct, done.host)} of the last picture's blocks fast")
        reasons = self.generation.reasons + sum((m.blocks.reasons for m in self.models), Counter())
        if reasons:
            parts.append("mostly because: " + reasons.most_common(1)[0][0])
        return " · ".join(parts)

    def _models_in_words(self) -> list[str]:
        """Models that are fast throughout in one phrase, the others one by one."""
        slow = [model for model in self.models if model.blocks.host]
        fast = [model for model in self.models if not model.blocks.host]
        groups = [fast] * bool(fast) + [[model] for model in slow]
        return [
            f"{', '.join(model.name for model in group)}: {sum(m.blocks.direct for m in group)} of "
            f"{sum(m.blocks.direct + m.blocks.host for m in group)} blocks fast"
            for group in groups
        ]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, as the API sends it."""
        generation = self.generation
        return {
            "version": self.version,
            "enabled": self.enabled,
            "stand_aside": list(self.stand_aside),
            "models": [{"name": model.name} | _tally(model.blocks) for model in self.models],
            "generation": _tally(generation)
            | {
                "model_calls": generation.model_calls,
                "fuse_s": generation.fuse_s,
                "load_s": generation.load_s,
                "networks": generation.networks,
            },
            "summary": self.summary,
        }


def _tally(tally: Tally) -> dict[str, Any]:
    return {"blocks": {"direct": tally.direct, "host": tally.host}, "reasons": dict(tally.reasons)}


def _share(direct: int, host: int) -> str:
    return f"{100 * direct / (direct + host):.0f} %"
