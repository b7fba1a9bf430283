"""A process that compiles for another one, so that nobody's pictures stutter and a crash ends nobody's work.

What it leaves behind is torch's own cache on disk: the process that asked then finds there what it would
have had to make. It reads a pickled Order from its standard input and writes a line of JSON for each part.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lib_accel.errors import CompileError
from lib_accel.graphs.structure import Condition, Sizes, Structure

_SILENCE_S = 600.0  # without a word, a compiler hangs
_NICENESS = 10


class Part(NamedTuple):
    """One graph to be made."""

    structure: Structure
    condition: Condition
    sizes: Sizes


class Order(NamedTuple):
    """What a worker is asked for."""

    parts: tuple[Part, ...]
    threads: int  # of torch: compiled code is made for a number of them


def compile_elsewhere(
    parts: Sequence[Part], threads: int, *, silence_s: float = _SILENCE_S, command: Sequence[str] = ()
) -> Generator[str | None, None, None]:
    """Has a worker make the graphs, and yields for each, when it is done, None or why it could not be made.

    If the worker ends too early, the one that it was making gets that as its reason, and is the last.
    command: of another worker than this file. Raises CompileError if there can be no worker.
    """
    try:
        process = subprocess.Popen(
            command or [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": _path()},
        )
    except OSError as error:
        raise CompileError(f"no process to compile in: {error}") from None
    with process:
        try:
            yield from _answers(process, Order(tuple(parts), threads), silence_s)
        finally:
            process.kill()


def _answers(process: subprocess.Popen[bytes], order: Order, silence_s: float) -> Iterator[str | None]:
    assert process.stdin is not None
    assert process.stdout is not None
    # It may be gone already, or hang before it reads.
    with _ended_after(silence_s, process), contextlib.suppress(OSError), process.stdin as stdin:
        stdin.write(pickle.dumps(order))
    for _ in order.parts:
        with _ended_after(silence_s, process):
            answer = next(filter(None, map(_answer, process.stdout)), None)
        if answer is None:
            yield f"the compiler's process ended with {process.wait()}"
            return
        yield answer["error"]


@contextlib.contextmanager
def _ended_after(silence_s: float, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ends the process if the `with` block takes longer."""
    alarm = threading.Timer(silence_s, process.kill)
    alarm.daemon = True
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()


def _answer(line: bytes) -> dict[str, str | None] | None:
    """What a worker says of a part; None for a line of somebody else, who prints when Python starts, say."""
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and "error" in answer else None


def _path() -> str:
    """The search path of a worker: where this package is, and what the environment adds."""
    home = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))


def main() -> int:
    """Makes what standard input asks for."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # compilers print
    order = pickle.loads(sys.stdin.buffer.read())
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    for error in _made(order):
        print(json.dumps({"error": error}), file=answers, flush=True)
    return 0


def _made(order: Order) -> Iterator[str | None]:
    import torch

    from lib_accel.graphs.compiler import Compiler

    torch.set_num_threads(order.threads)
    compiler = Compiler()
    for part in order.parts:
        try:
            compiler.prepare(*part)
        except CompileError as error:
            yield str(error)
        else:
            yield None


if __name__ == "__main__":
    raise SystemExit(main())
