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
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lib_accel.device import matmul_precision
from lib_accel.errors import CompileError
from lib_accel.graphs.structure import Condition, Sizes, Structure

_SILENCE_S = 600.0  # without a word, a compiler hangs
_NICENESS = 10
_LENGTH_BYTES = 8  # before the pickled order
_LOOK_EVERY_S = 0.1


class Part(NamedTuple):
    """One graph to be made."""

    structure: Structure
    condition: Condition
    sizes: Sizes


class Order(NamedTuple):
    """What a worker is asked for, and the settings of torch that compiled code is made for."""

    parts: tuple[Part, ...]
    threads: int
    matmul_precision: str  # of float32
    products: tuple[tuple[str, Any], ...]  # attributes of torch.backends.cuda.matmul


_REDUCTIONS = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
# Since torch 2.9, for whose cache the usual precision is another one once somebody has set it.
_PRECISION = "fp32_precision"


def order(parts: Sequence[Part]) -> Order:
    """An order of these parts, for this process' settings: torch's cache knows what it made by them too."""
    matmul = torch.backends.cuda.matmul
    names = [name for name in _REDUCTIONS if hasattr(matmul, name)]
    names += [_PRECISION] if hasattr(torch.backends, _PRECISION) else []
    products = tuple((name, getattr(matmul, name)) for name in names)
    return Order(tuple(parts), torch.get_num_threads(), matmul_precision(), products)


def compile_elsewhere(
    parts: Sequence[Part],
    stop: threading.Event,
    *,
    silence_s: float = _SILENCE_S,
    command: Sequence[str] = (),
) -> Generator[str | None, None, None]:
    """Has a worker make the graphs, and yields for each, when it is done, None or why it could not be made.

    If the worker ends too early, the one that it was making gets that as its reason, and is the last. When
    `stop` is set the worker is ended. command: of another worker than this file. Raises CompileError if there
    can be no worker.
    """
    try:
        process = subprocess.Popen(
            command or [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": search_path()},
        )
    except OSError as error:
        raise CompileError(f"no process to compile in: {error}") from None
    try:
        with process:
            try:
                yield from _answers(process, order(parts), stop, silence_s)
            finally:
                process.kill()
    except BrokenPipeError:  # of its input, which is closed last
        pass


def _answers(
    process: subprocess.Popen[bytes], wanted: Order, stop: threading.Event, silence_s: float
) -> Iterator[str | None]:
    assert process.stdin is not None
    assert process.stdout is not None
    content = pickle.dumps(wanted)
    # It may be gone already, or hang before it reads. The pipe stays open: the worker ends when it closes.
    with _ended_after(silence_s, process, stop), contextlib.suppress(OSError):
        process.stdin.write(len(content).to_bytes(_LENGTH_BYTES, "big") + content)
        process.stdin.flush()
    for _ in wanted.parts:
        with _ended_after(silence_s, process, stop):
            answer = next(filter(None, map(_answer, process.stdout)), None)
        if answer is None:
            yield f"the compiler's process ended with {process.wait()}"
            return
        yield answer["error"]


@contextlib.contextmanager
def _ended_after(silence_s: float, process: subprocess.Popen[bytes], stop: threading.Event) -> Iterator[None]:
    """Ends the process if the `with` block takes longer, or if `stop` is set meanwhile."""
    is_over = threading.Event()

    def watch() -> None:
        deadline = time.monotonic() + silence_s
        while not is_over.wait(_LOOK_EVERY_S):
            if stop.is_set() or time.monotonic() > deadline:
                process.kill()
                return

    threading.Thread(target=watch, name="accel-watch", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _answer(line: bytes) -> dict[str, str | None] | None:
    """What a worker says of a part; None for a line of somebody else, who prints when Python starts, say."""
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and "error" in answer else None


def search_path() -> str:
    """The search path of a process of ours: where this package is, and what the environment adds."""
    home = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))


def main() -> int:
    """Makes what standard input asks for; ends when that is closed, as it is when the one who asked ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # compilers print
    source = sys.stdin.buffer
    wanted = pickle.loads(source.read(int.from_bytes(source.read(_LENGTH_BYTES), "big")))
    threading.Thread(target=_end_with, args=(source.fileno(),), daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    for error in _made(wanted):
        print(json.dumps({"error": error}), file=answers, flush=True)
    return 0


def _end_with(source: int) -> None:
    while os.read(source, 1):  # nothing more is written
        pass
    os._exit(1)


def _made(wanted: Order) -> Iterator[str | None]:
    from lib_accel.graphs.compiler import Compiler

    torch.set_num_threads(wanted.threads)
    torch.set_float32_matmul_precision(wanted.matmul_precision)
    for name, value in wanted.products:
        setattr(torch.backends.cuda.matmul, name, value)
    compiler = Compiler()
    for part in wanted.parts:
        try:
            compiler.prepare(*part)
        except CompileError as error:
            yield str(error)
        else:
            yield None


if __name__ == "__main__":
    raise SystemExit(main())
