"""A worker answers one contest after the other, and whatever becomes of it, the one who asked goes on."""

from __future__ import annotations

import json
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from lib_accel.tuning import process as process_module
from lib_accel.tuning.process import End, Process
from lib_accel.tuning.worker import Answer
from tests.tuning.calls import ENOUGH_S, QUICK, contest, wait_until

READY = "import json, os, sys, time\nprint(json.dumps({'is_ready': True}), flush=True)\n"
READ = "source = sys.stdin.buffer\nsource.read(int.from_bytes(source.read(8), 'big'))\n"
ANSWER = f"print({json.dumps({'verdict': asdict(QUICK.verdict), 'is_kept': True})!r}, flush=True)\n"
HANG = "time.sleep(600)\n"

Start = Callable[..., Process]


def never() -> bool:
    return False


@pytest.fixture
def start() -> Iterator[Start]:
    """Workers that do what a script says, ended after the test."""
    started = []

    def start(body: str, silence_s: float = ENOUGH_S) -> Process:
        started.append(Process([sys.executable, "-S", "-c", body], silence_s=silence_s))
        return started[-1]

    yield start
    for each in started:
        each.end()


def asked(worker: Process, must_stop: Callable[[], bool] = never) -> Answer | End:
    return worker.ask(contest(), must_stop)


def test_a_worker_says_when_it_is_ready(start: Start) -> None:
    assert start(READY + HANG).await_ready(never) is True


def test_a_worker_answers_one_contest_after_the_other(start: Start) -> None:
    worker = start(READY + (READ + ANSWER) * 2)
    assert [worker.await_ready(never), asked(worker), asked(worker)] == [True, QUICK, QUICK]


def test_a_contest_arrives_as_it_was_given(start: Start) -> None:
    echo = "source = sys.stdin.buffer\n"
    echo += "found = source.read(int.from_bytes(source.read(8), 'big')).hex()\n"
    echo += "print(json.dumps({'verdict': {'code': found, 'reason': ''}, 'is_kept': False}), flush=True)\n"
    found = asked(start(READY + echo))
    assert isinstance(found, Answer)
    assert pickle.loads(bytes.fromhex(found.verdict.code)) == contest()


@pytest.mark.parametrize("garbage", ["Segmentation fault", "3", "[]", "{}", '{"verdict": {}}', "\\xff", ""])
def test_a_line_that_is_no_answer_is_passed_over(start: Start, garbage: str) -> None:
    line = f"sys.stdout.buffer.write(b'{garbage}\\n')\nsys.stdout.flush()\n"
    worker = start("import sys\n" + line + READY + line + READ + line + ANSWER)
    assert [worker.await_ready(never), asked(worker)] == [True, QUICK]


def test_a_worker_that_ends_says_how(start: Start) -> None:
    assert asked(start(READY + READ + "os._exit(7)")) == End("the process ended with 7", is_ours=False)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_worker_that_crashes_says_its_signal(start: Start) -> None:
    crash = READY + READ + "os.kill(os.getpid(), 11)"
    assert asked(start(crash)) == End("the process ended with -11", is_ours=False)


def test_a_worker_that_never_was_ready_is_one_that_ended(start: Start) -> None:
    assert start("raise SystemExit(3)").await_ready(never) == End("the process ended with 3", is_ours=False)


def test_a_worker_that_is_gone_is_asked_in_vain(start: Start) -> None:
    worker = start(READY)
    assert worker.await_ready(never) is True
    assert isinstance(asked(worker), End)


def test_a_worker_that_says_nothing_is_ended(start: Start) -> None:
    found = asked(start(READY + READ + HANG, silence_s=0.2))
    assert isinstance(found, End)
    assert not found.is_ours


def test_a_worker_that_has_to_stop_is_ended(start: Start) -> None:
    stop = threading.Event()
    worker = start(READY + READ + ANSWER + HANG)
    assert asked(worker) == QUICK
    stop.set()
    found = asked(worker, stop.is_set)
    assert isinstance(found, End)
    assert found.is_ours


def test_a_worker_that_has_to_stop_before_it_is_ready_is_ended(start: Start) -> None:
    found = start("import time\n" + HANG).await_ready(lambda: True)
    assert isinstance(found, End)
    assert found.is_ours


@pytest.mark.skipif(os.name != "posix", reason="elsewhere no process is asked after")
def test_a_worker_that_was_ended_is_gone(start: Start, tmp_path: Path) -> None:
    note = tmp_path / "number"
    worker = start(f"import os\nopen({str(note)!r}, 'w').write(str(os.getpid()))\n" + READY + HANG)
    assert worker.await_ready(never) is True
    worker.end()
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_nobody_watches_a_worker_that_has_answered(start: Start) -> None:
    asked(start(READY + READ + ANSWER + HANG))
    wait_until(lambda: all(thread.name != "accel-tuning-watch" for thread in threading.enumerate()))


def test_without_a_process_there_is_no_worker() -> None:
    with pytest.raises(OSError, match="python"):
        Process(["/nowhere/python"])


def test_without_a_python_there_is_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module.sys, "executable", "")
    with pytest.raises(OSError, match="which program Python is"):
        Process()
