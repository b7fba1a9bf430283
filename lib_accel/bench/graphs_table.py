"""The suite of graphs as lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_accel.bench.table import aligned

Figures = Mapping[str, Any]

_COUNTERS = ("structures", "graphs_after_warmup", "graphs_after_mix", "recompiles", "recompiles_in_mix")
_SECONDS = ("compile_s", "warm_compile_s")
_CODES = ("direct", "compiled", "host")


def graphs_table(report: Figures) -> str:
    """All sections, an empty line between them, and the summary as the last line."""
    sections = [_counters(report["graphs"])]
    sections += [_proof(width, each) for width, each in report["proof"].items()]
    seconds = "compile s" if report["environment"]["is_cold"] else "warm s"
    sections += [_ways(width, each, seconds) for width, each in report["ways"].items()]
    return "\n\n".join([*sections, summary_line(report["summary"])])


def _counters(packages: Figures) -> str:
    counted = {name: each for name, each in packages.items() if "left_out" not in each}
    headings = ("graphs", *(each.replace("_", " ") for each in (*_COUNTERS, *_SECONDS)), "worst rel-L2")
    rows = [
        [
            name,
            *(str(each[key]) for key in _COUNTERS),
            *(_number(each.get(key), ".1f") for key in _SECONDS),
            f"{max(picture['rel_l2'] for picture in each['pictures']):.1e}",
        ]
        for name, each in counted.items()
    ]
    lines = [aligned(headings, rows)]
    for name, each in counted.items():
        lines += [f"{name}: new graph: {reason}" for reason in each["reasons"]]
        lines += [f"{name}: not compiled, {count}: {why}" for why, count in each["not_compiled"].items()]
    left_out = {name: each["left_out"] for name, each in packages.items() if "left_out" in each}
    lines += [f"{name}: left out: {why}" for name, why in left_out.items()]
    return "\n".join(lines)


def _ways(width: str, compared: Figures, seconds: str) -> str:
    about = f"{compared['weights'] / 1e6:.0f} M weights in {compared['dtype']}, latents {compared['input']}"
    headings = (width, seconds, "graphs", "recompiles", "stock ms", "ms", "ratio", "95 % low", "rel-L2")
    rows = [[name, *_way(each)] for name, each in compared["ways"].items()]
    return f"ways to run the UNet of diffusers, {about}\n{aligned(headings, rows)}"


def _way(way: Figures) -> list[str]:
    if "same_as" in way:
        return [f"as {way['same_as']}", *[""] * 7]
    return [
        f"{way['compile_s']:.1f}",
        str(way["graphs"]),
        str(way["recompiles"]),
        f"{way['stock_ms']:.1f}",
        f"{way['accelerated_ms']:.1f}",
        f"{way['ratio']:.3f}",
        f"{way['ratio_low95']:.3f}",
        f"{way['rel_l2']:.1e}",
    ]


def _proof(width: str, proof: Figures) -> str:
    about = f"{proof['package']}'s UNet in {proof['dtype']}, latents {proof['input']}"
    headings = (width, "size", "tolerance", "difference", *(f"ms {code}" for code in _CODES), "choice", "")
    rows = [
        [
            case["block"],
            case["size"],
            _number(case["tolerance"], ".0e"),
            _number(case["difference"], ".1e"),
            *(_number(case["ms"].get(code), ".2f") for code in _CODES),
            case["choice"],
            case["reason"],
        ]
        for case in proof["cases"]
    ]
    return f"what measuring chooses, {about}\n{aligned(headings, rows)}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def summary_line(found: Figures) -> str:
    """The whole suite in one line."""
    flat = ", ".join(f"{name} {'flat' if is_flat else 'NOT FLAT'}" for name, is_flat in found["flat"].items())
    words = [f"graphs over the mix: {flat or 'nothing counted'}"]
    for width, ratios in found["compile_s_ratio"].items():
        parts = ", ".join(f"{name} {ratio:.1f}x" for name, ratio in ratios.items())
        words.append(f"{width} compiling against ours: {parts or 'not measured'}")
    for width, counts in found["chosen"].items():
        words.append(f"{width} chosen: {', '.join(f'{count} {code}' for code, count in counts.items())}")
    return "; ".join(words)
