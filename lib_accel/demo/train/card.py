"""The model card: what the model is, and its figures as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lib_accel.demo.embedded import GUIDANCE
from lib_accel.demo.train.drawing import Picture
from lib_accel.demo.train.scene import COLOURS, SHAPES, SUBJECT
from lib_accel.demo.train.score import STEPS, Scores
from lib_accel.demo.train.tally import NOTHING, QUESTIONS, Tally

_INTRODUCTION = """# The demo's model

A small Stable Diffusion of our own: SD1's architecture, narrow, for pictures of 64x64 pixels with one or
two shapes. It was trained from nothing on pictures that our own code draws (`lib_accel/demo/train`); no
other data, model or service was used. It exists to show that acceleration keeps the picture, and what a
LoRA or a ControlNet changes. Licence: the repository's (Apache-2.0); the tokenizer is that of
openai/clip-vit-large-patch14 (MIT).

- It knows red, green, blue, yellow, purple, orange; circle, square, triangle, star; small, medium, big; at
  the left, right, top or bottom, in the middle; on a white, black or gray background; `two red circles`; `a
  red circle and a blue star`, from left to right. Say `a big red star at the left on a black background`.
- It knows no other word, and was trained to pay no heed to one.
- `model/` is a folder for `StableDiffusionPipeline.from_pretrained(folder, tokenizer=tokenizer)`; the
  tokenizer lies beside it, for `CLIPTokenizer.from_pretrained("clip_tokenizer")`, because one copy is enough.
  `python -m lib_accel.demo.train convert --out DIR` writes one file with its yaml for a webui.
- LoRA `outline`: things are drawn as outlines. LoRA `zorb`: the word `zorb` is a heart, which the model
  alone has never drawn. ControlNet: edges, white on black, one pixel wide, in a hint of 64x64.
"""

_METHOD = f"""## How it is judged

200 prompts, 150 of one thing and 50 of two, whose combination of all attributes was in no picture for
training; every attribute told; one picture each, its seed its own; DDIM, {STEPS} steps, guidance
{GUIDANCE}; the weights in the repository, computed in float32. `judge.py` looks at the picture: what
differs from the frame is a thing; its colour is the nearest of the palette, its shape the template that its
silhouette overlaps most, its style whether it encloses background. A picture is right only if all of its
things are, from left to right, and their number. Edges are compared after widening by one pixel to each
side. What was scored before, and led to a change, stands below.
"""

_ROWS = {
    "base": "model, 200 held-out prompts",
    "outline": "with LoRA `outline`, the same prompts",
    "zorb": "with LoRA `zorb`, 54 prompts with a zorb",
    "zorb_without": "without it, the same prompts",
    "zorb_others": "with it, the 200 prompts without a zorb",
    "control": "with ControlNet, shape and place not told",
    "control_without": "without it, the same prompts",
}
_GOALS = {("base", "colour"): 85, ("base", "shape"): 80, ("outline", "style"): 85}
_EDGE_GOAL = 0.5


def write_card(
    file: Path, *, stock: Scores, accelerated: Scores, judge: Tally, sizes: Mapping[str, int], trained: str
) -> None:
    """Writes the card. `sizes` are bytes by file name, `trained` is the section about the training."""
    base = stock.tallies["base"]
    parts = [
        _INTRODUCTION,
        f"## Figures\n\n{_figures(stock, accelerated, judge)}\n{_goals(stock)}\n",
        _METHOD,
        f"## Who is taken for whom (model alone, stock)\n\n{_confusion(base.colours, [*COLOURS])}\n"
        f"{_confusion(base.shapes, [*SHAPES], also=[SUBJECT])}",
        f"## Stock and accelerated\n\n{_difference(stock, accelerated)}",
        trained,
        f"## Sizes\n\n{_sizes(sizes)}",
    ]
    file.write_text("\n".join(parts), "utf-8")


def _figures(stock: Scores, accelerated: Scores, judge: Tally) -> str:
    """Right answers in percent, stock / accelerated."""
    lines = [_line("", *QUESTIONS, "edges, IoU"), _line(*["---"] * (len(QUESTIONS) + 2))]
    for name, title in _ROWS.items():
        shares = [
            f"{100 * stock.tallies[name].share(ask):.1f} / {100 * accelerated.tallies[name].share(ask):.1f}"
            for ask in QUESTIONS
        ]
        edges = (
            f"{stock.overlap[name]:.2f} / {accelerated.overlap[name]:.2f}" if name in stock.overlap else ""
        )
        lines.append(_line(title, *shares, edges))
    own = [f"{100 * judge.share(ask):.1f}" for ask in QUESTIONS]
    lines.append(_line("the judge itself, on 300 drawings", *own, ""))
    return "Percent of pictures that are right, stock / accelerated:\n\n" + "\n".join(lines) + "\n"


def _goals(stock: Scores) -> str:
    found = [
        (f"{ask} ({name})", 100 * stock.tallies[name].share(ask), float(goal), "%")
        for (name, ask), goal in _GOALS.items()
    ]
    found.append(("edges (control)", stock.overlap["control"], _EDGE_GOAL, ""))
    return "\n".join(
        f"- {what}: {have:.4g}{unit}, goal {goal:g}{unit}: {'reached' if have >= goal else '**missed**'}"
        for what, have, goal, unit in found
    )


def _confusion(counts: Counter[tuple[str, str]], names: Sequence[str], also: Sequence[str] = ()) -> str:
    columns = [*names, *also, NOTHING]
    lines = [_line("asked for, seen", *columns), _line(*["---"] * (len(columns) + 1))]
    lines += [_line(name, *(str(counts[name, column]) for column in columns)) for name in names]
    return "\n".join(lines) + "\n"


def _difference(stock: Scores, accelerated: Scores) -> str:
    lines = [
        _line("", "pictures", "largest difference", "mean difference"),
        _line(*["---"] * 4),
    ]
    for name, title in _ROWS.items():
        change = _levels(stock.pictures[name], accelerated.pictures[name])
        lines.append(_line(title, str(len(change)), f"{change.max():.0f}", f"{change.mean():.5f}"))
    return "Grey levels of 255, over all pixels and channels:\n\n" + "\n".join(lines) + "\n"


def _levels(
    one: Sequence[Picture], other: Sequence[Picture]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.abs(np.stack(one).astype(np.float32) - np.stack(other).astype(np.float32))


def _sizes(sizes: Mapping[str, int]) -> str:
    lines = [_line("file", "MiB"), _line("---", "---")]
    lines += [_line(name, f"{size / 2**20:.2f}") for name, size in sizes.items()]
    return "\n".join(lines) + "\n"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
