"""Right answers counted, and what was taken for what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from lib_accel.demo.train.drawing import Picture
from lib_accel.demo.train.judge import Verdict, judge
from lib_accel.demo.train.scene import Scene

QUESTIONS = ("colour", "shape", "count", "background", "style")
NOTHING = "another count"  # of things: then none is compared


@dataclass
class Tally:
    """Right answers by question, and who was taken for whom."""

    right: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    colours: Counter[tuple[str, str]] = field(default_factory=Counter)  # (wanted, seen)
    shapes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def count(self, question: str, *, is_right: bool) -> None:
        """One answer more."""
        self.asked[question] += 1
        self.right[question] += is_right

    def share(self, question: str) -> float:
        """Right answers to a question, 0 to 1."""
        return self.right[question] / self.asked[question]

    def join(self, other: Tally) -> None:
        """All answers of another tally too."""
        for name in ("right", "asked", "colours", "shapes"):
            getattr(self, name).update(getattr(other, name))

    def add(self, scene: Scene, verdict: Verdict, *, style: str = "filled") -> None:
        """Holds what was seen against what was asked for; a picture is right if all of its things are.

        Things are compared in their order from left to right; with too few or too many none is right.
        """
        wanted, seen = scene.things, verdict.things
        same = len(wanted) == len(seen)
        pairs = list(zip(wanted, seen, strict=True)) if same else []
        self.count("count", is_right=same)
        self.count("background", is_right=verdict.background == scene.background)
        self.count("colour", is_right=same and all(want.colour == have.colour for want, have in pairs))
        self.count("shape", is_right=same and all(want.shape == have.shape for want, have in pairs))
        self.count("style", is_right=same and all(have.style == style for _, have in pairs))
        for number, want in enumerate(wanted):
            have = seen[number] if same else None
            self.colours[want.colour, have.colour if have else NOTHING] += 1
            self.shapes[want.shape, have.shape if have else NOTHING] += 1


def tally_of(scenes: Sequence[Scene], pictures: Sequence[Picture], *, style: str = "filled") -> Tally:
    """The judge's answers about the pictures made for some scenes."""
    tally = Tally()
    for scene, picture in zip(scenes, pictures, strict=True):
        tally.add(scene, judge(picture), style=style)
    return tally
