"""What the page and the API can ask for: to be told, to switch, to warm up, to measure, to forget."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from lib_accel.advice import advice, known_advice
from lib_accel.engine import Engine
from lib_accel.host import Host
from lib_accel.painter import Painter, Wanted
from lib_accel.pictures import Picture, Pictures
from lib_accel.report import FormatCase, Report, TuningReport, counted
from lib_accel.tasks.benchmark import NAME as BENCHMARK
from lib_accel.tasks.benchmark import Benchmark, benchmark
from lib_accel.tasks.task import Outcome, Task, Tasks
from lib_accel.tasks.warm_up import NAME as WARM_UP
from lib_accel.tasks.warm_up import Warm, warm_up
from lib_accel.tuning.contest import TORCH

_MIB = 2**20


class Networks(Protocol):
    """What the host knows of LoRAs and their kin."""

    def merged(self) -> Iterable[tuple[str, float, float]]:
        """Name, strength in the UNet, strength in the text encoders."""

    def kept_bytes(self) -> int:
        """Size of the files that are kept in memory."""


class Operations:
    """All of them. May be called from any thread."""

    def __init__(
        self,
        engine: Engine,
        host: Host,
        *,
        painter: Painter,
        networks: Networks,
        pictures: Pictures,
        surroundings: Callable[[], Mapping[str, str]],
    ) -> None:
        """`surroundings`: versions and settings of the program around us, for the report."""
        self._engine, self._host, self._painter = engine, host, painter
        self._networks, self._pictures, self._surroundings = networks, pictures, surroundings
        self._tasks = Tasks()
        self._benchmark: Benchmark | None = None
        self._latest: Report | None = None

    # Telling

    def summary(self) -> str:
        """One line in plain words."""
        return self._report().summary

    def status(self) -> dict[str, Any]:
        """Everything as plain values, as the page shows it and the API sends it."""
        report = self._report()
        task = self._tasks.report()
        return report.as_dict() | {
            "pictures": [picture.as_dict() for picture in self._pictures.latest()],
            "networks": [
                {"name": name, "unet": unet, "text_encoder": text_encoder}
                for name, unet, text_encoder in self._networks.merged()
            ],
            "memory": list(self._memory(report)),
            "cache": self._cache(),
            "task": None if task is None else task.as_dict(),
            "benchmark": None if self._benchmark is None else self._benchmark.as_dict(),
            "advice": _advice(report),
            "options": asdict(self._host.options()),
        }

    def report(self) -> str:
        """What a developer needs to know of this installation, to be sent to one."""
        report, options = self._report(), asdict(self._host.options())
        graphs = report.graphs
        lines = [f"{name}: {value}" for name, value in (*self._surroundings().items(), *options.items())]
        lines += [report.summary, *(f"{count} x {reason}" for reason, count in _reasons(report).items())]
        lines += [_in_words(picture) for picture in self._pictures.latest()]
        lines.append(f"graphs: {graphs.graphs} of {graphs.structures} structures, {graphs.compile_s:.0f} s")
        lines += [f"  {case.block} {case.size}: {case.code}, {case.reason}" for case in graphs.cases]
        lines += _measured_in_words(report.tuning)
        launches = report.launches
        lines.append(
            f"CUDA graphs: {launches.graphs} in {launches.mib:.0f} MiB, {launches.captures} captured in "
            f"{launches.capture_s:.1f} s, {launches.replays} replays, {launches.evicted} dropped for memory"
        )
        lines += [f"  {count} x {reason}" for reason, count in launches.reasons.items()]
        return "\n".join(lines)

    def _report(self) -> Report:
        """The engine's; of before, while a benchmark runs, whose times walking the models would disturb."""
        task = self._tasks.report()
        is_measuring = task is not None and task.is_running and task.name == BENCHMARK
        if is_measuring and self._latest is not None:
            return self._latest
        report = self._latest = self._engine.report()
        report.ratio = self._pictures.ratio()
        report.was_off = any(not picture.is_accelerated for picture in self._pictures.latest()[:1])
        return report

    def _memory(self, report: Report) -> Iterable[dict[str, Any]]:
        options = self._host.options()
        yield _amount("LoRA files kept", self._networks.kept_bytes(), float(options.lora_cache_mib))
        device = self._painter.device()
        if report.launches.captures:
            yield _amount("CUDA graphs", int(report.launches.mib * _MIB), float(options.graph_memory_mib))
        if device.type == "cuda" and torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info(device)
            yield _amount("GPU memory, all programs", total - free, total / _MIB)
            yield _amount("GPU memory of this process", torch.cuda.memory_reserved(device), total / _MIB)

    def _cache(self) -> dict[str, Any]:
        folder, size = self._host.cache_folder(), 0
        with contextlib.suppress(OSError):  # another program may be writing there
            size = sum(file.stat().st_size for file in folder.glob("*") if file.is_file())
        home, told = str(Path.home()), str(folder)
        told = f"~{told.removeprefix(home)}" if told.startswith(home) else told  # it may name the user
        return {"folder": told, "choices": self._engine.kept_choices(), "mib": size / _MIB}

    # Tasks

    def warm_up(self, wanted: Wanted) -> Warm:
        """Warms up, and returns when that is done. Raises TaskError."""
        return self._tasks.run(self._task(WARM_UP), self._warming(wanted))

    def start_warm_up(self, wanted: Wanted) -> None:
        """Warms up, while the status tells how far it is. Raises TaskError if another task is running."""
        self._tasks.start(self._task(WARM_UP), self._warming(wanted))

    def benchmark(self, wanted: Wanted) -> Benchmark:
        """Measures, and returns when that is done. Raises TaskError."""
        return self._tasks.run(self._task(BENCHMARK), self._measuring(wanted))

    def start_benchmark(self, wanted: Wanted) -> None:
        """Measures, while the status tells how far it is. Raises TaskError if another task is running."""
        self._tasks.start(self._task(BENCHMARK), self._measuring(wanted))

    def cancel(self) -> bool:
        """Has the running task end, in its next step if it draws; whether there is one."""
        is_running = self._tasks.cancel()
        if is_running:
            self._painter.interrupt()
        return is_running

    def forget(self) -> int:
        """Forgets which code was chosen for which block; returns how many choices that were."""
        return self._engine.forget_choices()

    def _task(self, name: str) -> Task:
        return Task(name, self._painter.tell)

    def _warming(self, wanted: Wanted) -> Callable[[Task], Outcome[Warm]]:
        return lambda task: warm_up(self._engine, self._painter, wanted, task)

    def _measuring(self, wanted: Wanted) -> Callable[[Task], Outcome[Benchmark]]:
        def measure(task: Task) -> Outcome[Benchmark]:
            outcome = benchmark(self._engine, self._painter, wanted, task)
            self._benchmark = outcome.value
            return outcome

        return measure


def _reasons(report: Report) -> dict[str, int]:
    """Why blocks are slow, in the latest picture or in the models as they are, and how many blocks."""
    counts: dict[str, int] = dict.fromkeys(report.stand_aside, 0)
    for reasons in (report.generation.reasons, *(model.blocks.reasons for model in report.models)):
        for reason, count in list(reasons.items()):
            counts[reason] = counts.get(reason, 0) + count
    return counts


def _advice(report: Report) -> dict[str, str]:
    """What to do about each reason."""
    tuning = report.tuning
    of_tuning = [*([tuning.fault] if tuning.fault else []), *tuning.refused]
    of_tuning += [reason for each in _formats(tuning) for reason in (each.reason, each.packing_reason)]
    known = {reason: text for reason in of_tuning if (text := known_advice(reason))}
    return known | {reason: advice(reason) for reason in (*_reasons(report), *report.launches.reasons)}


def _formats(tuning: TuningReport) -> list[FormatCase]:
    """Those of models where there is a choice of them, or where the host has chosen."""
    return [each for each in tuning.formats if tuning.cases or each.is_channels_last or each.is_packed]


def _measured_in_words(tuning: TuningReport) -> Iterable[str]:
    """Operators in a line, with one more for each that is not torch's, and the memory formats."""
    others = [case for case in tuning.cases if case.next_chosen != TORCH]
    if tuning.cases or tuning.pending:
        measured, pending = sum(bool(case.ms) for case in tuning.cases), tuning.pending
        yield f"operators: {measured} measured, {len(others)} faster than torch, {pending} to be measured"
    if tuning.fault:
        yield f"  {tuning.fault}"
    yield from (f"  attention is not as asked for: {reason}" for reason in tuning.refused)
    for case in others:
        plain, chosen = (f"{case.ms.get(name, math.nan):.3f}" for name in (TORCH, case.next_chosen))
        yield f"  {case.operator} {case.size} {case.dtype}: {case.next_chosen}, {plain} -> {chosen} ms"
    for each in _formats(tuning):
        lies = "channels last" if each.is_channels_last else "channels first"
        if each.reason:
            yield f"memory format of {each.model}: {lies}, {each.reason}"
        if each.packing_reason:
            projections = "packed" if each.is_packed else "apart"
            yield f"projections of {each.model}: {projections}, {each.packing_reason}"


def _amount(what: str, size: int, limit_mib: float | None) -> dict[str, Any]:
    return {"what": what, "mib": size / _MIB, "limit_mib": limit_mib}


def _in_words(picture: Picture) -> str:
    speed = "" if picture.its_per_s is None else f", {picture.its_per_s:.2f} it/s"
    return (
        f"{picture.ended} {picture.width}x{picture.height} x {picture.batch_size}, "
        f"{picture.steps} steps, {picture.seconds:.2f} s{speed}, {counted(picture.networks, 'LoRA')}, "
        f"{counted(picture.control_models, 'ControlNet')}, {picture.fast} of {picture.total} blocks fast"
    )
