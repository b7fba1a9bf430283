"""Figures as lines of text in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEADINGS = ("case", "stock ms", "ours ms", "ratio", "95 % low", "direct", "host", "rel-L2", "max")


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines under headings; the first column stands left, the others right."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def row(case: Mapping[str, Any]) -> list[str]:
    """A case of the benchmark's file as texts for the columns of HEADINGS."""
    speeds, far = case["blocks"]["by_speed"], case["difference"]
    return [
        case["name"],
        f"{case['stock_ms']:.1f}",
        f"{case['accelerated_ms']:.1f}",
        f"{case['ratio']:.3f}",
        f"{case['ratio_low95']:.3f}",
        str(speeds["direct"] + speeds["compiled"]),
        str(speeds["host"]),
        f"{far['rel_l2']:.1e}",
        str(far.get("picture_max", "-")),
    ]


def lora_lines(lora: Mapping[str, Any]) -> str:
    """What LoRAs cost, a line each number of them, and whether all steps are the same operations."""
    headings = ("LoRAs", "operations", "step, against 0", "switch ms", "peft ms")
    rows = [
        [
            count,
            str(ops["count"]),
            *(
                f"{lora[key][count]:{form}}" if count in lora[key] else "-"
                for key, form in (("step_ratio", ".3f"), ("switch_ms", ".1f"), ("peft_switch_ms", ".1f"))
            ),
        ]
        for count, ops in lora["step_ops"].items()
    ]
    same = len({ops["sha256"] for ops in lora["step_ops"].values()}) == 1
    bits = "the very bits" if lora["restore_bit_identical"] else "OTHER bits"
    remark = f"operations of a step: {'the same list' if same else 'DIFFERENT lists'}; back to none: {bits}"
    return f"{aligned(headings, rows)}\n{remark}"
