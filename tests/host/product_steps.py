"""Steps for what users ask of the extension itself: comparison, warm-up, benchmark, X/Y/Z plot. Ours only."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from .kit.client import diff
from .outcome import Outcome
from .picture import Picture
from .session import Session
from .steps import PATIENCE_S, Ask, wait_for_step

SIZE = {"width": 128, "height": 128}
_TIMES = 20  # that a comparison draws differences larger


@dataclass(frozen=True)
class Compared:
    """Draw a picture with "Compare with stock": ours, then for each picture stock's and the difference.

    ``same`` names an earlier picture of the row, which ours must equal.
    """

    picture: Picture
    count: int = 1
    same: str = ""

    def run(self, session: Session) -> list[Outcome]:
        """Generate and look."""
        outcome = Outcome(f"{self.picture.label}, compared")
        body = session.request(self.picture)
        body["alwayson_scripts"]["accel"] = {"args": [True, True]}
        images = session.client.generate(body).images
        ours, pairs = images[: self.count], images[self.count : 3 * self.count]
        if len(pairs) != 2 * self.count:
            outcome.problems.append(f"{len(images)} pictures, not {3 * self.count} or more")
            return [outcome]
        for number, one in enumerate(ours):
            outcome.problems += _wrong(one, *pairs[2 * number : 2 * number + 2])
        if self.same and diff(ours[0], session.pictures[self.same][0]).max:
            outcome.problems.append(f"is not equal to {self.same!r}")
        picture = session.status()["pictures"][0]
        if picture["largest_difference"] is None or not (picture["ratio"] or 0) > 0:
            outcome.problems.append(f"the status has ratio {picture['ratio']}")
        return [outcome]


def _wrong(ours: Image.Image, stock: Image.Image, drawn: Image.Image) -> list[str]:
    apart, shown = diff(ours, stock).max, max(high for _, high in drawn.getextrema())  # type: ignore[misc]
    problems = [] if apart <= 1 else [f"{apart:.0f} from stock"]
    return problems + ([] if shown == min(255, _TIMES * apart) else [f"{apart:.0f} is drawn as {shown}"])


@dataclass(frozen=True)
class LeftAlone:
    """A script of the list "Script", which uses the pictures itself: to compare must change nothing."""

    label: str
    fields: dict[str, Any]

    def run(self, session: Session) -> list[Outcome]:
        """Generate with and without, and compare all pictures."""
        outcome, sides = Outcome(f"{self.label}, not compared"), []
        for is_compared in (False, True):
            body = session.request(Picture(self.label)) | self.fields
            body["alwayson_scripts"] = {"accel": {"args": [True, is_compared]}}
            sides.append(session.client.generate(body).images)
        if len(sides[0]) != len(sides[1]) or any(diff(*pair).max for pair in zip(*sides, strict=False)):
            outcome.problems.append(f"{len(sides[1])} pictures, not the same {len(sides[0])}")
        return [outcome]


def post(
    route: str, body: dict[str, Any] | None = None, *, status: int = 200, has: Sequence[str] = ()
) -> Ask:
    """POST to a route of ours; the answer must have these keys, or refuse with this status."""
    return Ask(f"/accel/v1/{route}", (status,), post=True, body=body or {}, has=has)


@dataclass(frozen=True)
class Cancelled:
    """Begin a benchmark and end it by a route: ours, or the webui's Interrupt."""

    path: str

    def run(self, session: Session) -> list[Outcome]:
        """Begin, wait until it draws, end, and look how it ended."""
        outcome = Outcome(f"benchmark ended by {self.path}")
        benchmark = post("benchmark", SIZE | {"steps": 40}, status=409)
        ended: list[Outcome] = []
        thread = threading.Thread(target=lambda: ended.extend(benchmark.run(session)))
        thread.start()
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and not _task(session).get("is_running"):
            time.sleep(0.05)
        while time.monotonic() < deadline and _task(session).get("stage", "").startswith("waiting"):
            time.sleep(0.05)
        seen = session.client.call("/sdapi/v1/progress?skip_current_image=true")
        session.client.call(self.path, {})
        thread.join(PATIENCE_S)
        outcome.problems += [problem for each in ended for problem in each.problems]
        task = _task(session)
        if task["is_running"] or not task["error"]:
            outcome.problems.append(f"the task is {task}")
        if not str(seen["textinfo"]).startswith("Accel:"):
            outcome.problems.append(f"the webui's progress said {seen['textinfo']!r}")
        return [outcome]


def _task(session: Session) -> dict[str, Any]:
    task: dict[str, Any] = session.status()["task"] or {}
    return task


@dataclass(frozen=True)
class StockInterrupted:
    """Interrupt a comparison in stock's turn: what stock has drawn by then must come out."""

    def run(self, session: Session) -> list[Outcome]:
        """Begin, interrupt at the third step, look at the answer."""
        outcome, images = Outcome("comparison interrupted"), []
        body = session.request(Picture("long", fields={"steps": 150}))
        body["alwayson_scripts"] = {"accel": {"args": [True, True]}}
        thread = threading.Thread(target=lambda: images.extend(session.client.generate(body).images))
        thread.start()
        wait_for_step(session.client, 3, thread)
        session.client.call("/sdapi/v1/interrupt", {})
        thread.join(PATIENCE_S)
        if len(images) != 1:
            outcome.problems.append(f"{len(images)} pictures, not 1")
        return [outcome]


@dataclass(frozen=True)
class CancelledInQueue:
    """Begin a benchmark while somebody's picture is drawn, and cancel it before its turn comes."""

    def run(self, session: Session) -> list[Outcome]:
        """Draw, begin, cancel; the picture must be whole, and the benchmark must end before it."""
        outcome, ended = Outcome("benchmark cancelled in the queue"), []
        long = session.request(Picture("long", fields={"steps": 60}))

        def draw() -> None:
            session.client.generate(long)
            ended.append("picture")

        def measure() -> None:
            outcome.problems.extend(post("benchmark", SIZE, status=409).run(session)[0].problems)
            ended.append("benchmark")

        threads = [threading.Thread(target=draw), threading.Thread(target=measure)]
        threads[0].start()
        wait_for_step(session.client, 3, threads[0])
        threads[1].start()
        time.sleep(1.0)
        session.client.call("/accel/v1/cancel", {})
        for thread in threads:
            thread.join(PATIENCE_S)
        if ended != ["benchmark", "picture"]:
            outcome.problems.append(f"ended in the order {ended}")
        return [outcome]


@dataclass(frozen=True)
class Grid:
    """An X/Y/Z plot over our axis, whose pictures must be within 1 of each other."""

    values: tuple[str, ...]

    def run(self, session: Session) -> list[Outcome]:
        """Find the axis, draw, compare."""
        outcome = Outcome("X/Y/Z plot over Accel")
        index = int(session.client.run_code(_FIND_AXIS).strip())
        nothing = [0, "", []]
        axes = [[index, "", list(self.values)], nothing, nothing]
        arguments = [*(each for axis in axes for each in axis), False, True, False, False]
        arguments += [False, False, False, 0, False]
        body = session.request(Picture("grid")) | {"script_name": "X/Y/Z plot", "script_args": arguments}
        _, *cells = session.client.generate(body).images
        if len(cells) != len(self.values):
            outcome.problems.append(f"{len(cells)} cells, not {len(self.values)}")
        far = max((diff(cell, cells[0]).max for cell in cells), default=255)
        if far > 1:
            outcome.problems.append(f"cells are {far:.0f} apart")
        fast = [picture["fast"] > 0 for picture in session.status()["pictures"][: len(self.values)]][::-1]
        if fast != [value not in ("off", "host") for value in self.values]:
            outcome.problems.append(f"fast were {fast}")
        return [outcome]


_FIND_AXIS = """
from modules import scripts
(plot,) = (each.module for each in scripts.scripts_data if each.script_class.__module__ == "xyz_grid.py")
labels = [each.label for each in plot.axis_options if type(each) is not plot.AxisOptionImg2Img]
assert labels.count("Accel") == 1
print(labels.index("Accel"))
"""


@dataclass(frozen=True)
class Infotext:
    """Draw a picture whose parameters must, or must not, name the extension."""

    is_named: bool
    fields: dict[str, Any] = field(default_factory=dict)

    def run(self, session: Session) -> list[Outcome]:
        """Generate and read."""
        outcome = Outcome("parameters of a picture")
        (text,) = session.client.generate(session.request(Picture("named")) | self.fields).info["infotexts"]
        if ("Accel: " in text) is not self.is_named:
            outcome.problems.append(f"parameters are {text[-120:]!r}")
        return [outcome]


@dataclass(frozen=True)
class Lines:
    """Whether the log has a line of ours for each picture since the last such step; None only marks."""

    pictures: int | None = None

    def run(self, session: Session) -> list[Outcome]:
        """Count."""
        outcome = Outcome("lines on the console")
        log = session.launch.log.read_text(errors="replace").splitlines()
        lines = [number for number, line in enumerate(log) if line.startswith("Accel: ")]
        ends = [number for number, line in enumerate(log) if line.startswith(_MARK)]
        since = [number for number in lines if not ends or number > ends[-1]]
        if self.pictures is not None and len(since) != self.pictures:
            outcome.problems.append(f"{len(since)} lines for {self.pictures} pictures")
        session.client.run_code(f"import sys; print({_MARK!r}, file=sys.__stdout__, flush=True)")
        return [outcome]


_MARK = "counted so far"
