"""What the routes take and give: the report as typed models."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from lib_accel.painter import BATCHES, SIDE_STEP, SIDES, TIMED_STEPS


def _side() -> Any:
    return Field(512, ge=SIDES[0], le=SIDES[1], multiple_of=SIDE_STEP)


class Blocks(BaseModel):
    """How many blocks run which code."""

    direct: int
    compiled: int
    host: int


class Model(BaseModel):
    """One live model; `reasons` counts why blocks run as the host's modules."""

    name: str
    blocks: Blocks
    reasons: dict[str, int]


class Generation(BaseModel):
    """What happened since the latest generation began."""

    blocks: Blocks
    reasons: dict[str, int]
    model_calls: int
    replayed: int
    fuse_s: float
    load_s: float
    networks: int
    control_models: int


class Case(BaseModel):
    """What compiled code is worth for one kind of block, at sizes like this one."""

    block: str
    size: str
    dtype: str
    device: str
    code: str
    next_code: str
    reason: str
    difference: float | None
    tolerance: float | None
    ms: dict[str, float]


class Graphs(BaseModel):
    """What torch.compile has made, and what it is to make."""

    structures: int
    graphs: int
    recompiles: int
    compile_s: float
    reasons: list[str]
    pending: int
    making: str | None
    cases: list[Case]


class Launches(BaseModel):
    """Calls that are replayed as CUDA graphs; `reasons` counts why others are launched kernel by kernel."""

    graphs: int
    mib: float
    captures: int
    replays: int
    evicted: int
    capture_s: float
    reasons: dict[str, int]


class OperatorCase(BaseModel):
    """Calls of one operator that take the same implementation, plain torch being "torch"; `ms` is by name."""

    operator: str
    size: str
    dtype: str
    device: str
    chosen: str
    next_chosen: str
    reason: str
    difference: float | None
    tolerance: float | None
    ms: dict[str, float]


class FormatCase(BaseModel):
    """How a model's weights lie: convolutions', with `ms` of its residual blocks together, and projections'.

    A reason is empty where the model has no such weights.
    """

    model: str
    is_channels_last: bool
    reason: str
    ms: dict[str, float]
    is_packed: bool
    packing_reason: str
    packing_ms: dict[str, float]


class Tuning(BaseModel):
    """What was measured of operators and memory formats; `refused`: why attention is not as asked for."""

    cases: list[OperatorCase]
    pending: int
    holding: str | None
    seconds: float
    fault: str | None
    refused: list[str]
    formats: list[FormatCase]


class Picture(BaseModel):
    """One of the latest pictures; `ratio` is stock's time of a step divided by ours, if it was compared."""

    ended: str
    width: int
    height: int
    batch_size: int
    steps: int
    networks: int
    control_models: int
    fast: int
    total: int
    fuse_s: float
    seconds: float
    step_ms: float | None
    its_per_s: float | None
    is_accelerated: bool
    ratio: float | None
    largest_difference: int | None
    model: str
    how: str


class Network(BaseModel):
    """One of the networks that the latest prompt named, with its strengths."""

    name: str
    unet: float
    text_encoder: float


class Memory(BaseModel):
    """An amount of memory, and how much it may be."""

    what: str
    mib: float
    limit_mib: float | None


class Cache(BaseModel):
    """Where choices are kept."""

    folder: str
    choices: int
    mib: float


class Task(BaseModel):
    """How far the latest warm-up or benchmark is, or how it ended."""

    name: str
    stage: str
    done: float
    elapsed_s: float
    left_s: float | None
    is_running: bool
    outcome: str
    error: str | None


class BenchmarkRow(BaseModel):
    """Times of a step with so many LoRAs; `low` and `high` are the ends of the ratio's 95 % interval."""

    loras: int
    stock_ms: float
    ours_ms: float
    ratio: float
    low: float
    high: float


class Benchmark(BaseModel):
    """Stock and ours in turn, on this machine."""

    width: int
    height: int
    steps: int
    pairs: int
    device: str
    rows: list[BenchmarkRow]


class Settings(BaseModel):
    """What the user asked for."""

    enabled: bool
    code: str
    launch: str
    graph_memory_mib: int
    attention: str
    exact_loras: bool
    lora_cache_mib: int
    infotext: bool


class Status(BaseModel):
    """What runs how, and why; `advice` says what to do about each reason."""

    version: str
    enabled: bool
    stand_aside: list[str]
    models: list[Model]
    generation: Generation
    graphs: Graphs
    launches: Launches
    tuning: Tuning
    summary: str
    pictures: list[Picture]
    networks: list[Network]
    memory: list[Memory]
    cache: Cache
    task: Task | None
    benchmark: Benchmark | None
    advice: dict[str, str]
    options: Settings


class Names(BaseModel):
    """Networks by the names that prompts have for them."""

    names: list[str]


class Forgotten(BaseModel):
    """How many choices there were."""

    choices: int


class ReadAhead(BaseModel):
    """Which networks are read ahead, and which names are nobody's."""

    found: list[str]
    unknown: list[str]


class Report(BaseModel):
    """What a developer needs to know of this installation."""

    text: str


class WarmUp(BaseModel):
    """The pictures that are to come. Sides are in pixels."""

    width: int = _side()
    height: int = _side()
    batch_size: int = Field(1, ge=BATCHES[0], le=BATCHES[1])


class Warm(BaseModel):
    """What a warm-up did, as tasks/warm_up.py has it: `seconds` are those of its first picture."""

    pictures: int
    graphs: int
    operators: int
    others: int
    captures: int
    seconds: float
    step_ms: float | None


class Measure(BaseModel):
    """The pictures that are to be measured. Sides are in pixels."""

    width: int = _side()
    height: int = _side()
    steps: int = Field(8, ge=TIMED_STEPS[0], le=TIMED_STEPS[1])


class Cancelled(BaseModel):
    """Whether there was something to cancel."""

    cancelled: bool


class Refusal(BaseModel):
    """Why something was not done, and what to do."""

    detail: str
