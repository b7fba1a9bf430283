"""The operators of the suite of GPUs as lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from lib_accel.bench.gpu.operators_shapes import ENOUGH
from lib_accel.bench.table import aligned

Figures = Mapping[str, Any]

OPERATOR_REMARKS = (
    "operators: contests as the tuner holds them, one input again and again: what an L2 cache holds may be "
    "faster than its floor, which counts memory",
    "share, near: ms of what wins at a size itself, divided by the ms there of what won at the tuned size",
    "measure_s: contests of operators, which a webui holds while nobody draws; kept on disk from row to row",
    "ours, auto has convolution weights of its own, which may be channels last; peak_mib is without them",
)

_LONGEST = 60  # letters of a name or a reason


def operators(rows: list[Figures]) -> str:
    """A line a size: plain torch, the winner, and what was out and why."""
    headings = (
        "operator",
        "plain ms",
        "ms",
        "ratio",
        "winner",
        "floor ms",
        "floor",
        "plain's",
        "timed",
        "out",
    )
    lines = [
        [
            row["case"],
            f"{row['stock_ms']:.3g}",
            f"{row['ms']:.3g}",
            f"{row['ratio']:.2f}",
            row["winner"][:_LONGEST],
            f"{row['floor_ms']:.3g}",
            f"{100 * row['floor_share']:.3g} %",
            f"{100 * row['plain_floor_share']:.3g} %",
            str(len(row["implementations"]) - 1),
            str(len(row["out"])),
        ]
        for row in rows
    ]
    out = Counter(f"{row['operator']}, {name}: {why}" for row in rows for name, why in row["out"].items())
    told = _without_rivals([row for row in rows if not row["out"]])
    told += [f"out {count} times: {what[: 3 * _LONGEST]}" for what, count in out.most_common()]
    return "\n".join([aligned(headings, lines), *told])


def nears(rows: list[Figures]) -> str:
    """A line a size that was not tuned, and the least share of all."""
    headings = (
        "tuned at",
        "winner there",
        "size",
        "its own winner",
        "ms",
        "with that of the tuned ms",
        "share",
        f"{100 * ENOUGH:.0f} %",
    )
    lines = [
        [
            row["case"],
            row["winner"][:_LONGEST],
            each["size"],
            each["winner"][:_LONGEST],
            f"{each['ms']:.3g}",
            "-" if each["taken_ms"] is None else f"{each['taken_ms']:.3g}",
            "-" if each["share"] is None else f"{100 * each['share']:.1f} %",
            "yes" if _is_enough(each) else "no",
        ]
        for row in rows
        for each in row["others"]
    ]
    told = _without_rivals([each for row in rows for each in row["others"]])
    shares = [each["share"] for row in rows for each in row["others"]]
    known = [share for share in shares if share is not None]
    told += [f"least share at sizes that nobody tuned: {100 * min(known):.0f} %"] if known else []
    told.append(f"with {100 * ENOUGH:.0f} % of the tuned speed: {', '.join(_by_operator(rows))}")
    if len(known) < len(shares):
        told.append(f"{len(shares) - len(known)} sizes do not take what won at the tuned one")
    return "\n".join([aligned(headings, lines), *told])


def _by_operator(rows: list[Figures]) -> list[str]:
    """How many sizes that nobody tuned have enough of the tuned speed, by operator."""
    sizes: dict[str, list[bool]] = {}
    for row in rows:
        sizes.setdefault(row["operator"], []).extend(map(_is_enough, row["others"]))
    return [f"{operator} {sum(each)} of {len(each)} sizes" for operator, each in sizes.items()]


def _is_enough(size: Figures) -> bool:
    return size["share"] is not None and bool(size["share"] >= ENOUGH)


def _without_rivals(rows: list[Figures]) -> list[str]:
    alone = sum(len(row["implementations"]) == 1 for row in rows)
    return [f"at {alone} sizes nothing but plain torch takes the arguments here"] * bool(alone)


def warm_ups(rows: list[Figures]) -> str:
    """A line a case: how long it took, and what is taken since."""
    headings = ("case", "measure s", "other s", "sizes of operators", "take another")
    lines = [
        [
            row["case"],
            f"{row['measure_s']:.1f}",
            f"{row['warmup_s']:.1f}",
            str(row["about"]["operators"]["sizes"]),
            str(row["about"]["operators"]["taken"]),
        ]
        for row in rows
    ]
    return aligned(headings, lines)


def taken(rows: list[Figures]) -> list[str]:
    """Of each row that has measured operators: how many take what, and how the weights lie."""
    lines = []
    for row in rows:
        about = row.get("about") or {}
        chosen = about.get("operators")
        if not chosen or not (chosen["sizes"] or chosen["fault"]):
            continue
        words = f"{chosen['taken']} of {chosen['sizes']} sizes of operators take another than plain torch"
        by_operator = ", ".join(f"{count} {name}" for name, count in chosen["by_operator"].items())
        formats = "; ".join(f"{model}: channels {how}" for model, how in about["formats"].items())
        parts = [f"{words} ({by_operator})" if by_operator else words, formats]
        parts += [f"{chosen['pending']} are not measured yet"] * bool(chosen["pending"])
        parts += [f"nothing is measured: {chosen['fault']}"] * bool(chosen["fault"])
        lines.append(f"{row['part']} / {row['case']} / {row['side']}: {'; '.join(filter(None, parts))}")
    return lines
