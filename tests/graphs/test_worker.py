"""A worker's answers come one by one, and whatever becomes of it, the one who asked goes on."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib_accel.errors import CompileError
from lib_accel.graphs import worker
from lib_accel.graphs.worker import Order, Part, compile_elsewhere
from tests.graphs.small import Backends, calls, part, residual, transformer

PARTS = [part(block, calls(block)[0]) for block in (residual(), transformer(), residual(out=8))]


def fake(body: str) -> list[str]:
    """The command of a worker that has read its order and then does this."""
    return [sys.executable, "-S", "-c", body]


def answers(body: str, silence_s: float = 60.0) -> list[str | None]:
    """What such a worker is heard to say."""
    return list(compile_elsewhere(PARTS, 3, silence_s=silence_s, command=fake(body)))


READ = "import json, os, sys, time\nsys.stdin.buffer.read()\n"
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
    found = list(compile_elsewhere(larger_than_a_pipe, 1, silence_s=0.2, command=command))
    assert found == ["the compiler's process ended with -9"]


def test_a_worker_that_is_no_longer_asked_is_ended(tmp_path: Path) -> None:
    note = tmp_path / "number"
    body = READ + f"open({str(note)!r}, 'w').write(str(os.getpid()))\n" + ANSWER + "time.sleep(600)"
    asked = compile_elsewhere(PARTS, 1, command=fake(body))
    assert next(asked) is None
    asked.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_without_a_process_there_is_no_worker() -> None:
    with pytest.raises(CompileError, match="no process to compile in"):
        list(compile_elsewhere(PARTS, 1, command=["/nowhere/python"]))


def test_a_worker_is_asked_nothing_before_it_is_listened_to() -> None:
    compile_elsewhere(PARTS, 1, command=["/nowhere/python"])


_ECHO = """
import json, pickle, sys
order = pickle.loads(sys.stdin.buffer.read())
for part in order.parts:
    print(json.dumps({"error": f"{part.structure} {part.sizes.x} {part.condition.dtype} {order.threads}"}))
"""


def test_an_order_arrives_as_it_was_given() -> None:
    found = list(compile_elsewhere(PARTS[:2], 3, command=[sys.executable, "-c", _ECHO]))
    assert found == [
        "residual 16x16x3x3 (2, 16, 8, 8) torch.float32 3",
        "transformer block 16x16 (2, 64, 16) torch.float32 3",
    ]


@pytest.mark.parametrize("wanted", PARTS)
def test_a_part_is_the_same_after_it_was_sent(wanted: Part) -> None:
    assert pickle.loads(pickle.dumps(Order((wanted,), 1))) == Order((wanted,), 1)


def test_a_worker_tells_of_each_part_how_it_went(monkeypatch: pytest.MonkeyPatch) -> None:
    from lib_accel.graphs import compiler

    threads = torch.get_num_threads()
    monkeypatch.setattr(compiler.Compiler.__init__, "__defaults__", (Backends(),))
    bad = PARTS[0]._replace(sizes=PARTS[0].sizes._replace(x=(2, 15, 8, 8)))
    first, second, third = worker._made(Order((PARTS[0], bad, PARTS[1]), threads))
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
    found = subprocess.run(
        [sys.executable, "-c", _PRINTING],
        input=pickle.dumps(Order((), 1)),
        capture_output=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert [json.loads(line) for line in io.BytesIO(found.stdout)] == [{"error": None}, {"error": "no"}]
    assert b"a compiler's own words" in found.stderr


@pytest.mark.slow
def test_a_worker_makes_what_is_asked_and_says_what_cannot_be() -> None:
    bad = PARTS[0]._replace(sizes=PARTS[0].sizes._replace(x=(2, 15, 8, 8)))
    first, second = compile_elsewhere([PARTS[0], bad], torch.get_num_threads())
    assert first is None
    assert second is not None
    assert second.startswith("residual 16x16x3x3: ")
