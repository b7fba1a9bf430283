"""Two servers for a group of rows, one without the extension and one with it, and what a row does on both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from . import stand_in
from .compare import Line, compare
from .kit import make_clip
from .kit.client import ApiError
from .kit.start import Launch, start
from .kit.stop import stop
from .outcome import Outcome
from .row import Group, Row
from .session import Session
from .steps import EndRow

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
HOST_EXTENSIONS = {
    "host-probe": HERE / "kit" / "extensions" / "host-probe",
    "host-tiny-controlnet": HERE / "kit" / "extensions" / "host-tiny-controlnet",
}
ACCEL = "sd-webui-accel"
CONTROLNET = "sd-webui-controlnet"


@dataclass(frozen=True)
class Place:
    """Where the webui is, which ports to use, and what the second server gets."""

    webui: Path
    venv: Path
    hf_home: Path
    port: int
    accel: bool  # whether it gets the extension
    others: Path | None = None  # folder with checkouts of other extensions
    replays: bool = False  # whether it gets the stand-in for CUDA graphs too

    @classmethod
    def make(
        cls,
        webui: Path,
        venv: Path,
        port: int,
        *,
        accel: bool,
        others: Path | None = None,
        replays: bool = False,
    ) -> Place:
        """Resolve the paths; the tokenizer lies in SD_WEBUI_HF_HOME, or in the webui's tmp folder."""
        webui = webui.resolve()
        hf_home = Path(os.environ.get("SD_WEBUI_HF_HOME") or webui / "tmp" / "accel-hf").resolve()
        return cls(webui, venv.absolute(), hf_home, port, accel, others and others.resolve(), replays)

    def make_models(self, targets: set[str]) -> None:
        """Write the tokenizer and the models that are missing."""
        make_clip.write(self.hf_home)
        command = [str(self.venv / "bin" / "python"), "-m", f"{__package__}.kit.make_models", "--missing"]
        command += ["--webui", str(self.webui), "--hf-home", str(self.hf_home), *sorted(targets)]
        subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def launch(self, group: Group, *, ours: bool, extra: dict[str, Path] | None = None) -> Launch:
        """How to start one server of a group."""
        extensions = HOST_EXTENSIONS | {CONTROLNET: self.webui / "extensions" / CONTROLNET} | (extra or {})
        if ours and self.accel:
            extensions[ACCEL] = ROOT
        return Launch(
            webui=self.webui,
            venv=self.venv,
            hf_home=self.hf_home,
            checkpoint=group.checkpoint,
            port=self.port + ours,
            extensions=extensions,
            copies={name: self.others / name for name in group.others} if self.others else {},
            flags=group.flags,
            settings=stand_in.SETTINGS if ours and self.replays else {},
            ui=group.ui,
            api=group.api,
        )


def end_servers_when_terminated() -> None:
    """Let SIGTERM end this process as an exception does, so that no server is left running."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


class Pair:
    """The servers of one group, running while the context is open."""

    def __init__(self, group: Group, place: Place):
        self.group = group
        self.place = place
        sides = (False, True) if group.stock else (True,)
        self.launches = [place.launch(group, ours=ours) for ours in sides]
        self.sessions = [
            Session(launch, ours=place.accel and ours, auth=group.auth, replays=place.replays and ours)
            for launch, ours in zip(self.launches, sides, strict=True)
        ]

    def __enter__(self) -> Pair:
        """Start the servers side by side."""
        try:
            with ThreadPoolExecutor(len(self.launches)) as pool:
                list(pool.map(start, self.launches))
            for session in self.sessions:
                session.begin_server()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """End the servers."""
        self.end()

    def end(self) -> None:
        """End whatever runs of them."""
        for launch in self.launches:
            stop(launch.webui, launch.port)

    def replayed(self) -> list[Line]:
        """What the stand-in has replayed so far, if there is one."""
        session = self.sessions[-1]
        if not session.replays:
            return []
        try:
            return [stand_in.line(self.group.name, session.status()["launches"])]
        except ApiError as error:
            return [Line(self.group.name, "stand-in", "status", problems=[str(error)[:300]])]

    def run(self, row: Row) -> list[Line]:
        """Run a row on both servers at the same time and compare."""
        before = [session.tracebacks() for session in self.sessions]
        with ThreadPoolExecutor(len(self.sessions)) as pool:
            outcomes = list(pool.map(lambda session: run_row(row, session), self.sessions))
        news = [session.tracebacks() - count for session, count in zip(self.sessions, before, strict=True)]
        ours = outcomes[-1]
        stocks = outcomes[0] if self.group.stock else [None] * len(ours)
        lines = [compare(self.group.name, row.name, *pair) for pair in zip(stocks, ours, strict=False)]
        if self.group.stock and len(outcomes[0]) != len(ours):
            lines[-1].problems.append(f"stock took {len(outcomes[0])} steps, ours {len(ours)}")
        if self.group.stock and news[-1] > news[0] and not row.tracebacks:
            lines[-1].problems.append(f"{news[-1]} tracebacks in our log, {news[0]} in that of stock")
        return lines


def run_row(row: Row, session: Session) -> list[Outcome]:
    """Take the steps of a row on one server; what breaks the row off is the problem of its last outcome."""
    outcomes: list[Outcome] = []
    session.begin_row()
    for step in (*row.steps, EndRow()):
        try:
            outcomes += step.run(session)
        except (ApiError, KeyError) as error:
            problem = f"{session.side}: {type(error).__name__} {str(error)[:300]}"
            outcomes.append(Outcome(f"broken off in {type(step).__name__}", problems=[problem]))
    return outcomes
