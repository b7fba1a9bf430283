"""The suite of LoRAs as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lib_accel.bench.lora_suite import FUSE_RANK, LEAST, is_right
from lib_accel.bench.sides import BY_LAYER, OURS, PEFT, SIDES
from lib_accel.bench.table import aligned

Figures = Mapping[str, Any]

_PARTS = ("load", "plan", "copy", "unfuse", "unload", "set", "fuse")
_ROUNDING = ("attention", "merge", "host_from_float32", "ours_from_float32")
_PHASES = {
    "first": "first set",
    "switch": "another set",
    "scale_change": "all scales",
    "one_changed": "one of them",
    "shared": "half of layers",
    "unchanged": "same set",
    "off": "none",
}


def lora_table(report: Figures) -> str:
    """All sections, an empty line between them, and the summary as the last line."""
    sections = [_kinds(report["kinds"]), _flat(report["flat"]), _rounding(report["rounding"])]
    for name, size in report["switch"].items():
        sections += [_phases(name, size), _parts(name, size), _bandwidth(report["bandwidth"][name])]
    return "\n\n".join([*sections, summary_line(report["summary"])])


def _kinds(rows: list[dict[str, Any]]) -> str:
    headings = ("kind", "spelling", "layers", "of weight", "of change", "")
    return aligned(headings, [_kind(row) for row in rows])


def _kind(row: Figures) -> list[str]:
    named = [row["kind"], row["spelling"], f"{row['layers']}/{row['expected']}"]
    if "refused" in row:
        return [*named, "-", "-", "refused"]
    verdict = "" if is_right(row) else "WRONG"
    return [*named, f"{row['of_weight']:.1e}", f"{row['of_change']:.1e}", verdict]


def _flat(flat: Figures) -> str:
    counts = ", ".join(f"{count}: {each['count']}" for count, each in flat["step_ops"].items())
    same = "the same list" if flat["holds"] else "DIFFERENT lists"
    return f"operations of a step by number of LoRAs: {counts}; {same}"


def _rounding(rows: list[dict[str, Any]]) -> str:
    headings = ("dtype", "LoRAs", *(part.replace("_", " ") for part in _ROUNDING))
    cells = [[row["dtype"], str(row["loras"]), *(f"{row[part]:.1e}" for part in _ROUNDING)] for row in rows]
    return f"a picture's latents, relative differences\n{aligned(headings, cells)}"


def _phases(name: str, size: Figures) -> str:
    about = size["about"]
    title = (
        f"{name}: {about['layers']} layers, {about['weights'] / 1e6:.0f} M weights in {about['dtype']}, "
        f"rank {about['rank']}, files of {about['file_bytes'] / 1e6:.1f} MB; milliseconds"
    )
    headings = ("LoRAs", "side", *_PHASES.values())
    return f"{title}\n{aligned(headings, list(_phase_rows(size)))}"


def _phase_rows(size: Figures) -> Iterator[list[str]]:
    for count, each in size["counts"].items():
        for side in SIDES:
            if side in each:
                yield [count, side, *(_ms(each[side], phase, "s") for phase in _PHASES)]
        yield from ([count, side, f"left out: {why}"] + [""] * 6 for side, why in each["left_out"].items())


def _parts(name: str, size: Figures) -> str:
    rows = [
        [count, side, phase, *(_ms(each[side], key, part) for part in _PARTS)]
        for count, each in size["counts"].items()
        for side in SIDES
        if side in each
        for key, phase in list(_PHASES.items())[:2]
    ]
    return f"{name}: parts of it\n{aligned(('LoRAs', 'side', 'change', *_PARTS), rows)}"


def _ms(phases: Figures, phase: str, part: str) -> str:
    value = phases.get(phase, {}).get(part)
    return "-" if value is None else f"{1000 * value:.1f}"


def _bandwidth(band: Figures) -> str:
    headings = ("LoRAs", "total rank", "fuse ms", "GiB/s", "of a copy")
    rows = [
        [
            count,
            str(each["total_rank"]),
            f"{1000 * each['fuse_s']:.1f}",
            f"{each['gib_s']:.2f}",
            f"{each['ratio']:.2f}",
        ]
        for count, each in band["counts"].items()
    ]
    copy = f"a plain copy of the same bytes: {1000 * band['copy_s']:.1f} ms, {band['copy_gib_s']:.2f} GiB/s"
    return f"{aligned(headings, rows)}\n{copy}"


def summary_line(found: Figures) -> str:
    """The whole suite in one line."""
    words = [
        f"kinds: {found['kinds_right']} right, {len(found['kinds_wrong'])} wrong, "
        f"{len(found['kinds_refused'])} refused",
        f"steps {'flat' if found['flat'] else 'NOT FLAT'}",
    ]
    for name, counts in found["switch_ratio"].items():
        for side in (BY_LAYER, PEFT):
            times = "/".join(_times(each.get(side)) for each in counts.values())
            wanted = _wanted(name, counts, side)
            words.append(f"{name} switch of {'/'.join(counts)}: {side} takes {times} of {OURS}{wanted}")
    if found["worst_fuse_ratio"] is not None:
        words.append(
            f"fusing up to rank {FUSE_RANK} at most {found['worst_fuse_ratio']:.2f}x a copy "
            f"(target on a GPU: {found['fuse_limit']})"
        )
    return "; ".join(words)


def _wanted(name: str, counts: Figures, side: str) -> str:
    """What is wanted of these ratios, if anything; nothing is where a model is too small to tell."""
    if name == "tiny":
        return ""
    least = [f"{LEAST[count]:g}" for count in counts if count in LEAST]
    return f" (at least {'/'.join(least)} wanted)" if side == BY_LAYER and len(least) == len(counts) else ""


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1f}x"
