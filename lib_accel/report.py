"""What runs how, and why: counted while a picture is made, read by the status line, the API and the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass
class Tally:
    """Blocks by the code that they run."""

    direct: int = 0
    compiled: int = 0
    host: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # why blocks run as the host's, or in pieces

    def add(self, reasons: Sequence[str], *, is_compiled: bool = False) -> None:
        """Counts one block, at host speed for these reasons, or compiled or direct if there are none."""
        if reasons:
            self.host += 1
            self.reasons.update(reasons)
        elif is_compiled:
            self.compiled += 1
        else:
            self.direct += 1

    def add_all(self, other: Tally) -> None:
        """Counts what another tally has counted."""
        self.direct += other.direct
        self.compiled += other.compiled
        self.host += other.host
        if other.reasons:
            self.reasons.update(other.reasons)

    @property
    def fast(self) -> int:
        """Blocks that run our code."""
        return self.direct + self.compiled

    @property
    def total(self) -> int:
        """All blocks."""
        return self.fast + self.host


@dataclass
class Generation(Tally):
    """What happened since the latest generation began."""

    model_calls: int = 0  # calls of UNets and control models
    replayed: int = 0  # blocks that were launched by a graph
    fuse_s: float = 0.0  # seconds in which weights were made to carry the wanted networks
    load_s: float = 0.0  # seconds in which the host read networks
    networks: int = 0  # how many networks the weights carried last
    control_models: int = 0  # ControlNet units that took part, where the host tells

    def copy(self) -> Generation:
        """The counters as they are now, while another thread goes on counting."""
        return replace(self, reasons=Counter(dict(self.reasons)))


@dataclass
class ModelReport:
    """One live model."""

    name: str
    blocks: Tally


@dataclass(frozen=True)
class CaseReport:
    """What compiled code is worth for one structure, at sizes like this one."""

    block: str  # kind and shape of its largest weight
    size: str  # of the input that it was met with
    dtype: str
    device: str
    code: str  # that runs
    next_code: str  # that runs from the next picture on
    reason: str
    difference: float | None  # of compiled from direct, relative L2 norm
    tolerance: float | None
    ms: Mapping[str, float]  # by code


@dataclass(frozen=True)
class GraphReport:
    """What torch.compile has made in this process, and what it is to make."""

    structures: int = 0
    graphs: int = 0
    recompiles: int = 0
    compile_s: float = 0.0
    reasons: list[str] = field(default_factory=list)  # of recompiles
    pending: int = 0
    making: str | None = None
    cases: list[CaseReport] = field(default_factory=list)


@dataclass(frozen=True)
class LaunchReport:
    """Calls that are replayed as one recording: on a GPU, CUDA graphs."""

    graphs: int = 0  # that can be replayed now
    mib: float = 0.0  # of memory for them
    captures: int = 0  # since the start, as are the following
    replays: int = 0
    evicted: int = 0
    capture_s: float = 0.0
    reasons: Mapping[str, int] = field(default_factory=dict)  # why calls are launched kernel by kernel


@dataclass(frozen=True)
class TuningCase:
    """Calls of one operator that are equally well computed by the same implementation."""

    operator: str
    size: str  # of the tensors of the call that they were met with
    dtype: str  # of the first tensor
    device: str
    chosen: str  # that is taken: "torch" is plain torch
    next_chosen: str  # that is taken from the next picture on
    reason: str
    difference: float | None = None  # of the winner from plain torch, relative L2 norm
    tolerance: float | None = None
    ms: Mapping[str, float] = field(default_factory=dict)  # by implementation


@dataclass(frozen=True)
class FormatCase:
    """How weights of one model lie in memory: those of convolutions, and those of attention's projections.

    A reason is empty where the model has no such weights.
    """

    model: str
    is_channels_last: bool
    reason: str
    ms: Mapping[str, float] = field(default_factory=dict)  # of its residual blocks together, by format
    is_packed: bool = False
    packing_reason: str = ""
    packing_ms: Mapping[str, float] = field(default_factory=dict)  # of its attention parts together


@dataclass(frozen=True)
class TuningReport:
    """What was found out about operators and memory formats."""

    cases: list[TuningCase] = field(default_factory=list)
    pending: int = 0  # contests
    holding: str | None = None  # the operator of the contest that is held now
    seconds: float = 0.0  # that contests took in this process, which nobody waited for
    fault: str | None = None  # why there can be none
    refused: list[str] = field(default_factory=list)  # why attention is not as it was asked for
    formats: list[FormatCase] = field(default_factory=list)


@dataclass
class Report:
    """Everything that the status shows."""

    version: str
    enabled: bool
    stand_aside: list[str]
    models: list[ModelReport]
    generation: Generation
    graphs: GraphReport = field(default_factory=GraphReport)
    launches: LaunchReport = field(default_factory=LaunchReport)
    tuning: TuningReport = field(default_factory=TuningReport)
    # Stock's time of a step divided by ours, if pictures like the latest were compared.
    ratio: float | None = None
    was_off: bool = False  # whether the latest picture was drawn without us, as its user asked

    @property
    def summary(self) -> str:
        """One line in plain words."""
        if not self.enabled:
            return "off"
        if self.stand_aside:
            return "standing aside: " + "; ".join(self.stand_aside)
        if not self.models:
            return "waiting for a model"
        if self.was_off:
            return " · ".join([*self._models_in_words(), "off in the last picture"])
        done = self.generation
        if done.host and not done.fast:
            return "standing aside in the last picture: " + done.reasons.most_common(1)[0][0]
        parts = self._models_in_words()
        if done.networks:
            merged = f"{counted(done.networks, 'LoRA')} merged"
            parts.append(f"{merged} in {1000 * done.fuse_s:.0f} ms" if done.fuse_s >= 0.001 else merged)
        if done.control_models:
            parts.append(counted(done.control_models, "ControlNet"))
        if self.ratio is not None:
            parts.append(f"{self.ratio:.2g}x")
        if done.replayed:
            parts.append(f"{_share(done, done.replayed)} of the last picture's blocks by CUDA graph")
        if done.compiled:
            parts.append(f"{done.compiled} of {done.total} blocks of the last picture compiled")
        if self.graphs.pending:
            parts.append(f"{self.graphs.pending} graphs to be compiled")
        if done.host:
            parts.append(f"{_share(done, done.fast)} of the last picture's blocks fast")
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
            f"{', '.join(model.name for model in group)}: {sum(m.blocks.fast for m in group)} of "
            f"{sum(m.blocks.total for m in group)} blocks fast"
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
                "replayed": generation.replayed,
                "fuse_s": generation.fuse_s,
                "load_s": generation.load_s,
                "networks": generation.networks,
                "control_models": generation.control_models,
            },
            "graphs": asdict(self.graphs),
            "launches": asdict(self.launches),
            "tuning": asdict(self.tuning),
            "summary": self.summary,
        }


def _tally(tally: Tally) -> dict[str, Any]:
    blocks = {"direct": tally.direct, "compiled": tally.compiled, "host": tally.host}
    return {"blocks": blocks, "reasons": dict(tally.reasons)}


def counted(number: int, what: str) -> str:
    """In words: "no LoRA", "1 LoRA", "4 LoRAs"."""
    return f"{number or 'no'} {what}{'s' if number > 1 else ''}"


def _share(tally: Tally, part: int) -> str:
    return f"{100 * part / tally.total:.0f} %"
