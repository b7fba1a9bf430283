"""What a row can do to a server, beside asking for a picture. Each step runs on both servers alike."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from .kit.client import ApiError, Client
from .outcome import Outcome
from .picture import Picture
from .session import TRACEBACK, Session

PATIENCE_S = 90.0


class Step(Protocol):
    """One thing that a row does."""

    def run(self, session: Session) -> list[Outcome]:
        """Do it on this server."""


@dataclass(frozen=True)
class Draw:
    """Ask for a picture."""

    picture: Picture

    def run(self, session: Session) -> list[Outcome]:
        """Generate it."""
        return [session.draw(self.picture)]


@dataclass(frozen=True)
class Options:
    """Change options of the webui until the end of the row."""

    changes: dict[str, Any]

    def run(self, session: Session) -> list[Outcome]:
        """Change them."""
        session.set_options(self.changes)
        return []


@dataclass(frozen=True)
class OurOptions(Options):
    """Change options of the extension until the end of the row; the stock server has none of them."""

    def run(self, session: Session) -> list[Outcome]:
        """Change them."""
        return super().run(session) if session.ours else []


@dataclass(frozen=True)
class EndRow:
    """Set the options back that the row has changed."""

    def run(self, session: Session) -> list[Outcome]:
        """Do it."""
        session.end_row()
        return []


@dataclass(frozen=True)
class Code:
    """Run Python code in the server; what it prints must be the same on both, and must match ``prints``."""

    label: str
    code: str
    only_ours: bool = False
    prints: str | None = None

    def run(self, session: Session) -> list[Outcome]:
        """Run it."""
        if self.only_ours and not session.ours:
            return [Outcome(self.label)]
        text = session.client.run_code(self.code).strip()
        outcome = Outcome(self.label, text="" if self.only_ours else text)
        wrong = TRACEBACK in text or (self.prints is not None and text != self.prints)
        if wrong:
            wanted = "" if self.prints is None else f", not {self.prints!r}"
            outcome.problems.append(f"{session.side}: printed {text[-300:]!r}{wanted}")
        return [outcome]


@dataclass(frozen=True)
class Switch:
    """Turn the extension on or off through its own API."""

    on: bool

    def run(self, session: Session) -> list[Outcome]:
        """Do it, and look whether it did."""
        word = "enable" if self.on else "disable"
        outcome = Outcome(f"POST {word}")
        if session.ours:
            answer = session.client.call(f"/accel/v1/{word}", {})
            if answer["enabled"] is not self.on or session.status()["enabled"] is not self.on:
                outcome.problems.append(f"still {'off' if self.on else 'on'}")
        return [outcome]


@dataclass(frozen=True)
class Together:
    """Several clients at once, each of which asks for its pictures one after the other."""

    chains: tuple[tuple[Picture, ...], ...]

    def run(self, session: Session) -> list[Outcome]:
        """Generate them."""

        def chain(pictures: tuple[Picture, ...]) -> list[Outcome]:
            return [session.draw(picture) for picture in pictures]

        with ThreadPoolExecutor(len(self.chains)) as pool:
            return [outcome for outcomes in pool.map(chain, self.chains) for outcome in outcomes]


@dataclass(frozen=True)
class Watched:
    """Draw a picture while another thread asks for its live preview, which the server decodes beside it."""

    picture: Picture

    def run(self, session: Session) -> list[Outcome]:
        """Generate it; without a single preview the step has shown nothing."""
        with ThreadPoolExecutor(1) as pool:
            drawing = pool.submit(session.draw, self.picture)
            previews = 0
            while not drawing.done():
                previews += bool(session.client.call("/sdapi/v1/progress")["current_image"])
                time.sleep(0.02)
        outcome = drawing.result()
        if not previews:
            outcome.problems.append(f"{session.side}: no preview came")
        return [outcome]


@dataclass(frozen=True)
class Post:
    """Call a route of the webui that changes its state."""

    path: str

    def run(self, session: Session) -> list[Outcome]:
        """Call it."""
        session.client.call(self.path, {})
        return []


@dataclass(frozen=True)
class Interrupt:
    """Start a picture of many steps and interrupt it; what has become of it by then is not compared."""

    picture: Picture
    label: str = "interrupt"

    def run(self, session: Session) -> list[Outcome]:
        """Start, wait for the second step, interrupt, wait for the answer."""
        outcome = Outcome(self.label)
        long = replace(self.picture, label="long", fields=self.picture.fields | {"steps": 150})
        drawing = threading.Thread(target=session.draw, args=(long,))
        drawing.start()
        wait_for_step(session.client, 2, drawing)
        began = time.monotonic()
        session.client.call("/sdapi/v1/interrupt", {})
        drawing.join(PATIENCE_S)
        if drawing.is_alive() or time.monotonic() - began > PATIENCE_S / 4:
            outcome.problems.append("the picture went on after the interrupt")
        return [outcome]


def progress(client: Client) -> dict[str, Any]:
    """State of the generation that runs now."""
    state: dict[str, Any] = client.call("/sdapi/v1/progress?skip_current_image=true")["state"]
    return state


def wait_for_step(client: Client, step: int, drawing: threading.Thread) -> None:
    """Return when the picture that ``drawing`` has asked for is at this step, or done."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and drawing.is_alive():
        if progress(client)["sampling_step"] >= step:
            break
        time.sleep(0.05)


@dataclass(frozen=True)
class ReloadUi:
    """What the button "Reload UI" does: load scripts anew and start the server again in its process."""

    def run(self, session: Session) -> list[Outcome]:
        """Ask for it and wait until the log says that the new server is complete; its store is a new one.

        A request that comes earlier ends the webui: it adds parts to a server that answers already.
        """
        outcome = Outcome("Reload UI")
        starts = _starts(session)
        session.client.run_code("store['old'] = True; shared.state.request_restart()")
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and _starts(session) == starts:
            time.sleep(0.2)
        if _starts(session) == starts:
            outcome.problems.append(f"the server did not come back within {PATIENCE_S:.0f} s")
        elif session.client.run_code("print('old' in store)").strip() != "False":
            outcome.problems.append("the server that answers is the old one")
        session.begin_server()
        return [outcome]


def _starts(session: Session) -> int:
    """How often the server has been completed."""
    return session.launch.log.read_text(errors="replace").count("Startup time:")


@dataclass(frozen=True)
class Ask:
    """Call a route of our server and look at the status of the answer, and maybe into it."""

    path: str
    statuses: tuple[int, ...] = (200,)
    post: bool = False
    auth: str = ""
    holds: dict[str, Any] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)  # of a POST
    has: Sequence[str] = ()  # keys of the answer whose values must not be empty

    def run(self, session: Session) -> list[Outcome]:
        """Call it."""
        method = "POST" if self.post else "GET"
        outcome = Outcome(f"{method} {self.path}{' with password' if self.auth else ''}")
        if not session.ours:
            return [outcome]
        client, status, answer = Client(session.launch.url, auth=self.auth), 200, {}
        try:
            answer = client.call(self.path, self.body if self.post else None, method=method)
        except ApiError as error:
            status = error.status
        if status not in self.statuses:
            outcome.problems.append(f"status {status}, not {' or '.join(map(str, self.statuses))}")
        wrong = {key: answer.get(key) for key, value in self.holds.items() if answer.get(key) != value}
        if wrong and status == 200:
            outcome.problems.append(f"answered {wrong}, not {self.holds}")
        if status == 200 and (missing := [key for key in self.has if answer.get(key) in (None, [], 0)]):
            outcome.problems.append(f"the answer lacks {missing}: {answer}")
        return [outcome]


@dataclass(frozen=True)
class GraphsMade:
    """Wait until every graph is made that a picture has asked for."""

    label: str = "graphs are made"
    patience_s: float = 1200.0  # a compiler takes seconds for each, on a loaded machine many

    def run(self, session: Session) -> list[Outcome]:
        """Ask now and then."""
        outcome = Outcome(self.label)
        deadline = time.monotonic() + self.patience_s
        while session.ours and (left := session.status()["graphs"]["pending"]):
            if time.monotonic() > deadline:
                outcome.problems.append(f"{left} graphs are not made after {self.patience_s:.0f} s")
                break
            time.sleep(1.0)
        return [outcome]


@dataclass(frozen=True)
class RanCompiled:
    """Whether blocks of the latest picture ran compiled, and no structure has more than two graphs."""

    label: str = "ran compiled"

    def run(self, session: Session) -> list[Outcome]:
        """Look at the status."""
        outcome = Outcome(self.label)
        if session.ours:
            status = session.status()
            graphs, compiled = status["graphs"], status["generation"]["blocks"]["compiled"]
            if not compiled:
                reasons = {case["reason"] for case in graphs["cases"] if case["code"] != "compiled"}
                outcome.problems.append(f"nothing ran compiled: {sorted(reasons)[:3]}")
            if graphs["graphs"] > 2 * graphs["structures"]:
                outcome.problems.append(f"{graphs['graphs']} graphs of {graphs['structures']} structures")
        return [outcome]


NUMBER = (int, float)
SHAPES: dict[str, Any] = {
    "version": str,
    "enabled": bool,
    "stand_aside": list,
    "models": list,
    "summary": str,
    "generation.model_calls": int,
    "generation.blocks.direct": int,
    "generation.blocks.compiled": int,
    "generation.blocks.host": int,
    "generation.reasons": dict,
    "generation.fuse_s": NUMBER,
    "generation.networks": int,
    "graphs.pending": int,
    "graphs.cases": list,
}
MODEL_SHAPES: dict[str, Any] = {"name": str, "blocks.direct": int, "blocks.host": int, "reasons": dict}


@dataclass(frozen=True)
class StatusShape:
    """Whether GET /accel/v1/status has all its fields, with values of their types, and just these models."""

    models: tuple[str, ...]

    def run(self, session: Session) -> list[Outcome]:
        """Ask and look."""
        outcome = Outcome("shape of the status")
        if session.ours:
            status = session.status()
            outcome.problems = misshapen(status, SHAPES)
            models = status.get("models") or []
            names = tuple(model.get("name") for model in models)
            if names != self.models:
                outcome.problems.append(f"models are {names}, not {self.models}")
            for model in models:
                outcome.problems += misshapen(model, MODEL_SHAPES)
        return [outcome]


def misshapen(answer: dict[str, Any], shapes: dict[str, Any]) -> list[str]:
    """Fields, given as dotted paths, that are missing or of another type."""
    problems = []
    for path, wanted in shapes.items():
        value: Any = answer
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, wanted):
            problems.append(f"{path} is {value!r}")
    return problems
