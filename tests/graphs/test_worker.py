"""A worker's answers come one by one, and whatever becomes of it, the one who asked goes on."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
import torch

from lib_accel.errors import CompileError
from lib_accel.graphs import worker
from lib_accel.graphs.worker import Order, Part, compile_elsewhere, order
from tests.graphs.small import Backends, calls, part, residual, transformer

ROOT = Path(__file__).resolve().parents[2]

PARTS = [part(block, calls(block)[0]) for block in (residual(), transformer(), residual(out=8))]


def fake(body: str) -> list[str]:
    """The command of a worker that has read its order and then does this."""
    return [sys.executable, "-S", "-c", body]


def answers(body: str, silence_s: float = 60.0) -> list[str | None]:
    """What such a worker is heard to say."""
    return list(compile_elsewhere(PARTS, Event(), silence_s=silence_s, command=fake(body)))


READ = """
import json, os, sys, time
sys.stdin.buffer.read(int.from_bytes(sys.stdin.buffer.read(8), "big"))
"""
ANSWER = "print(json.dumps({'error': None}), flush=True)\n"


def test_each_part_has_an_answer() -> None:
    error = "print(json.dumps({'error': 'no'}), flush=True)\n"
    assert answers(READ + ANSWER + error + ANSWER) == [None, "no", None]


def test_a_worker_that_dies_gives_its_end_as_the_reason_of_one_part() -> None:
    assert answers(READ + ANSWER + "os._exit(7)") == [None, "the compiler's process ended with 7"]


def test_a_worker_that_crashes_gives_its_signal() -> None:
    assert answers(READ + "os.kill(os.getpid(), 11)") == ["the compiler's process ended with -11"]


def test_a_worker_that_never_read_its_order_is_one_that_ended() -> None:
    assert answers("raise SystemExit(3)") == ["the compiler's process ended with 3"]


def test_a_worker_that_says_nothing_is_ended() -> None:
    assert answers(READ + "time.sleep(600)", silence_s=0.2) == ["the compiler's process ended with -9"]


def test_a_worker_that_falls_silent_is_ended() -> None:
    found = answers(READ + ANSWER + "time.sleep(600)", silence_s=2.0)
    assert found == [None, "the compiler's process ended with -9"]


@pytest.mark.parametrize("garbage", ["Segmentation fault", "3", "[]", "{}", "\\xff", ""])
def test_a_line_that_is_no_answer_is_passed_over(garbage: str) -> None:
    line = f"sys.stdout.buffer.write(b'{garbage}\\n')\n"
    assert answers(READ + line + ANSWER + line + ANSWER + line + line + ANSWER) == [None] * 3


def test_a_worker_that_talks_nonsense_for_ever_is_ended() -> None:
    endless = "while True:\n    print('nonsense', flush=True)\n    time.sleep(0.01)"
    assert answers(READ + endless, silence_s=0.3) == ["the compiler's process ended with -9"]


def test_a_worker_that_hangs_before_it_reads_is_ended() -> None:
    larger_than_a_pipe = PARTS * 1000
    command = fake("import time; time.sleep(600)")
    found = list(compile_elsewhere(larger_than_a_pipe, Event(), silence_s=0.2, command=command))
    assert found == ["the compiler's process ended with -9"]


def test_a_worker_that_hangs_is_ended_when_it_is_to_stop() -> None:
    stop = Event()
    asked = compile_elsewhere(PARTS, stop, command=fake(READ + ANSWER + "time.sleep(600)"))
    assert next(asked) is None
    stop.set()
    assert list(asked) == ["the compiler's process ended with -9"]


def test_a_worker_that_hangs_before_it_reads_is_ended_when_it_is_to_stop() -> None:
    stop = Event()
    stop.set()
    command = fake("import time; time.sleep(600)")
    found = list(compile_elsewhere(PARTS * 1000, stop, command=command))
    assert found == ["the compiler's process ended with -9"]


_WORKER = """
import sys, time
from lib_accel.graphs import worker
def made(order):
    life = open(sys.argv[1], "w")
    yield None
    time.sleep(60)
    life.write("it has outlived the one who asked")
worker._made = made
worker.main()
"""

_ASKING = f"""
import os, sys, threading
from lib_accel.graphs.worker import compile_elsewhere
from tests.graphs.test_worker import PARTS
command = [sys.executable, "-c", {_WORKER!r}, sys.argv[1]]
assert next(compile_elsewhere(PARTS, threading.Event(), command=command)) is None
os._exit(9)
"""


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
def test_a_worker_ends_with_the_process_that_asked(tmp_path: Path) -> None:
    life = tmp_path / "life"  # ends when the worker does, which has it open
    os.mkfifo(life)
    with open(os.open(life, os.O_RDONLY | os.O_NONBLOCK)) as reader:
        found = subprocess.run([sys.executable, "-c", _ASKING, str(life)], cwd=ROOT, check=False)
        os.set_blocking(reader.fileno(), True)
        assert (found.returncode, reader.read()) == (9, "")


def test_a_worker_that_is_no_longer_asked_is_ended(tmp_path: Path) -> None:
    note = tmp_path / "number"
    body = READ + f"open({str(note)!r}, 'w').write(str(os.getpid()))\n" + ANSWER + "time.sleep(600)"
    asked = compile_elsewhere(PARTS, Event(), command=fake(body))
    assert next(asked) is None
    asked.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_without_a_process_there_is_no_worker() -> None:
    with pytest.raises(CompileError, match="no process to compile in"):
        list(compile_elsewhere(PARTS, Event(), command=["/nowhere/python"]))


def test_a_worker_is_asked_nothing_before_it_is_listened_to() -> None:
    compile_elsewhere(PARTS, Event(), command=["/nowhere/python"])


_ECHO = """
import json, pickle, sys
source = sys.stdin.buffer
order = pickle.loads(source.read(int.from_bytes(source.read(8), "big")))
for part in order.parts:
    print(json.dumps({"error": f"{part.structure} {part.sizes.x} {part.condition.dtype} {order[1:]}"}))
"""


def test_an_order_arrives_as_it_was_given() -> None:
    found = list(compile_elsewhere(PARTS[:2], Event(), command=[sys.executable, "-c", _ECHO]))
    assert found == [
        f"residual 16x16x3x3 (2, 16, 8, 8) torch.float32 {order(())[1:]}",
        f"transformer block 128x16 (2, 64, 16) torch.float32 {order(())[1:]}",
    ]


@pytest.mark.parametrize("wanted", PARTS)
def test_a_part_is_the_same_after_it_was_sent(wanted: Part) -> None:
    assert pickle.loads(pickle.dumps(order([wanted]))) == order([wanted])


@pytest.fixture
def _settings_come_back() -> Iterator[None]:
    """Those of torch that an order carries."""
    before = order(())
    yield
    list(worker._made(before))
    assert order(()) == before


REDUCTIONS = tuple((name, False) for name in worker._REDUCTIONS)
OTHER_SETTINGS = Order((), 2, "high", (*REDUCTIONS, ("fp32_precision", "tf32")))


@pytest.mark.usefixtures("_settings_come_back")
def test_an_order_carries_the_settings_of_torch() -> None:
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("high")
    for name, value in REDUCTIONS:
        setattr(torch.backends.cuda.matmul, name, value)
    assert order(()) == OTHER_SETTINGS


@pytest.mark.usefixtures("_settings_come_back")
def test_a_worker_takes_the_settings_of_its_order() -> None:
    assert order(()) != OTHER_SETTINGS
    assert list(worker._made(OTHER_SETTINGS)) == []
    assert order(()) == OTHER_SETTINGS


@pytest.mark.usefixtures("_settings_come_back")
def test_a_precision_that_was_set_is_told_from_the_same_that_nobody_set() -> None:
    torch.backends.cuda.matmul.fp32_precision = "none"  # as it is at first
    untouched = order(())
    torch.set_float32_matmul_precision(untouched.matmul_precision)
    assert order(()) != untouched  # as torch's cache sees it
    assert list(worker._made(untouched)) == []
    assert order(()) == untouched


def test_a_worker_tells_of_each_part_how_it_went(monkeypatch: pytest.MonkeyPatch) -> None:
    from lib_accel.graphs import compiler

    monkeypatch.setattr(compiler.Compiler.__init__, "__defaults__", (Backends(),))
    bad = PARTS[0]._replace(sizes=PARTS[0].sizes._replace(x=(2, 15, 8, 8)))
    first, second, third = worker._made(order([PARTS[0], bad, PARTS[1]]))
    assert (first, third) == (None, None)
    assert second is not None
    assert second.startswith("residual 16x16x3x3: ")


_PRINTING = """
import sys
from lib_accel.graphs import worker
def made(order):
    print("a compiler's own words")
    yield from [None, "no"]
worker._made = made
sys.exit(worker.main())
"""


def test_what_compilers_print_is_no_answer() -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    content = pickle.dumps(order(()))
    with subprocess.Popen([sys.executable, "-c", _PRINTING], cwd=ROOT, **pipes) as process:
        assert None not in (process.stdin, process.stdout, process.stderr)
        process.stdin.write(len(content).to_bytes(8, "big") + content)
        process.stdin.flush()  # and not closed: that would end it
        found = [json.loads(line) for line in process.stdout]
        assert found == [{"error": None}, {"error": "no"}]
        assert b"a compiler's own words" in process.stderr.read()
        assert process.wait() == 0


@pytest.mark.slow
def test_a_worker_makes_what_is_asked_and_says_what_cannot_be() -> None:
    bad = PARTS[0]._replace(sizes=PARTS[0].sizes._replace(x=(2, 15, 8, 8)))
    first, second = compile_elsewhere([PARTS[0], bad], Event())
    assert first is None
    assert second is not None
    assert second.startswith("residual 16x16x3x3: ")
