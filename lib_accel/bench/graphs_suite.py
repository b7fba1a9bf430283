"""The suite of graphs: how many there are and stay, what they cost and bring, and what measuring chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lib_accel.bench.environment import environment
from lib_accel.bench.graphs_apart import cold_and_warm
from lib_accel.bench.graphs_compared import compared
from lib_accel.bench.graphs_mix import MOST_GRAPHS, MOST_STRUCTURES, counters_or_reason, is_flat
from lib_accel.bench.graphs_models import PACKAGES, place
from lib_accel.bench.graphs_proof import proof_of
from lib_accel.bench.graphs_rivals import OURS_COMPILED, REPEATED, RIVALS, WHOLE, Makers
from lib_accel.bench.progress import Progress
from lib_accel.bench.stats import FLOOR

Figures = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is measured, and how much of it. Widths are keys of graphs_models.WIDTHS."""

    counted: str = "tiny"  # width of the models whose graphs are counted
    widths: tuple[str, ...] = ("tiny", "half")  # at which ways are compared
    proved: tuple[str, ...] = ("sd15",)  # whose blocks are measured one by one
    pairs: int = 7
    steps: int = 5  # of a timed run; the first is left out
    is_cold: bool = True  # all is compiled anew, and counters have processes of their own
    threads: int = 1


BRIEF = Plan(counted="toy", widths=("toy",), proved=("toy",), pairs=2, steps=3, is_cold=False)

REMARKS = (
    "graphs: counters of torch._dynamo for the ways, lib_accel's own for the mix",
    "compile_s: of ours, all graphs in this process; of others, the first call less the second",
    "recompiles: graphs that another height or width costs; one of a whole UNet is counted and not made",
    "warm: in a new process with the compiler's files of the one before",
    "ratio: stock's time divided by the way's, median over pairs that were timed in turn",
    "weights of ldm and sgm are changed in place, since nothing there reads LoRAs",
)


def graphs_suite(plan: Plan, *, keep: Callable[[Figures], object], makers: Makers | None = None) -> Figures:
    """All figures of the suite in the form of its file.

    keep: given them as they are so far whenever a part is done. makers: of other graphs than Inductor's, for
    which all is compiled in this process.
    """
    figures: Figures = {"graphs": {}, "proof": {}, "ways": {}, "summary": {}}
    with Progress(_parts(plan)) as progress:

        def done() -> None:
            figures["environment"] = _about(plan)
            figures["summary"] = summary(figures)
            keep(figures)

        for package in PACKAGES:
            figures["graphs"][package] = _counted(package, plan, makers, progress.begin)
            done()
        for width in plan.proved:
            figures["proof"][width] = proof_of(width, backends=(makers or Makers()).ours, tell=progress.begin)
            done()
        for width in plan.widths:

            def keep_ways(ways: Figures, width: str = width) -> None:
                figures["ways"][width] = ways
                done()

            compared(
                width,
                pairs=plan.pairs,
                steps=plan.steps,
                is_cold=plan.is_cold,
                makers=makers or Makers(),
                tell=progress.begin,
                keep=keep_ways,
            )
    return figures


def _parts(plan: Plan) -> int:
    return len(PACKAGES) + len(RIVALS) * len(plan.widths) + 2 * len(plan.proved)


def _counted(package: str, plan: Plan, makers: Makers | None, tell: Callable[[str], object]) -> Figures:
    if makers is None and plan.is_cold:
        tell(f"{package}: graphs of a mix of pictures, cold and warm")
        return cold_and_warm(package, plan.counted, plan.threads)
    tell(f"{package}: graphs of a mix of pictures")
    return counters_or_reason(package, plan.counted, backends=(makers or Makers()).ours)


def _about(plan: Plan) -> Figures:
    about = environment(place(plan.counted).device)
    return about | {"suite": "graphs", **asdict(plan), "remarks": list(REMARKS)}


def summary(figures: Mapping[str, Any]) -> Figures:
    """What follows: whether the mix made graphs, others' compile times against ours, which code is chosen."""
    counted = {name: each for name, each in figures["graphs"].items() if "left_out" not in each}
    return {
        "flat": {name: is_flat(each) for name, each in counted.items()},
        "most_structures": MOST_STRUCTURES,
        "most_graphs_of_one": MOST_GRAPHS,
        # With compilers' files of earlier runs the seconds of each way say what those were.
        "compile_s_ratio": {width: _shorter(each["ways"]) for width, each in figures["ways"].items()}
        if figures["environment"]["is_cold"]
        else {},
        "slower_than_stock": {
            width: [name for name, way in each["ways"].items() if way.get("ratio_low95", FLOOR) < FLOOR]
            for width, each in figures["ways"].items()
        },
        "chosen": {width: _counts(each["cases"]) for width, each in figures["proof"].items()},
    }


def _shorter(ways: Mapping[str, Any]) -> Figures:
    """How many times as long as our graphs others take to compile."""
    ours = ways.get(OURS_COMPILED, {}).get("compile_s")
    return {name: ways[name]["compile_s"] / ours for name in (REPEATED, WHOLE) if ours and name in ways}


def _counts(cases: list[Mapping[str, Any]]) -> dict[str, int]:
    chosen = [case["choice"] for case in cases]
    return {code: chosen.count(code) for code in sorted(set(chosen))}
