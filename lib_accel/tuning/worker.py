"""A process that holds contests for another one: what crashes, hangs or compiles there touches no picture.

It reads pickled contests from its standard input, each after its length, and writes a line of JSON for each,
and one before the first when it is ready. It ends when its input is closed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import BinaryIO, NamedTuple, NoReturn

import torch

from lib_accel.blocks.operators.operator import Operator
from lib_accel.device import OUT_OF_MEMORY
from lib_accel.errors import reason_of
from lib_accel.graphs.cuda_graph import launcher_of_this_process
from lib_accel.graphs.proof import Verdict
from lib_accel.tuning.contest import TORCH, UnsoundError, hold
from lib_accel.tuning.settings import Settings
from lib_accel.tuning.signature import Call, example

_READY = {"is_ready": True}
_NICENESS = 10
_LENGTH_BYTES = 8  # before each pickled contest
_MEMORY_SHARE = 4  # one part of so many of what is free may be for a contest
_COPIES = 5  # of the arguments: themselves, in another format, two results, wider ones to be compared


class Contest(NamedTuple):
    """One that is wanted, as it is sent."""

    table: str  # of operators by name, as "module:NAME"
    call: Call
    is_launched: bool  # by recordings, where calls are replayed
    settings: Settings


class Answer(NamedTuple):
    """What a contest has shown."""

    verdict: Verdict
    is_kept: bool  # or may it be otherwise at the next start, when there is more memory, say


def packed(contest: Contest) -> bytes:
    """What a worker reads."""
    content = pickle.dumps(contest)
    return len(content).to_bytes(_LENGTH_BYTES, "big") + content


def is_ready(line: bytes) -> bool | None:
    """Whether it is a worker's first word; None for a line of somebody else, who prints at the start, say."""
    with contextlib.suppress(ValueError):
        if json.loads(line) == _READY:
            return True
    return None


def answer_in(line: bytes) -> Answer | None:
    """What a worker says of a contest; None for a line of somebody else."""
    try:
        said = json.loads(line)
        return Answer(Verdict(**said["verdict"]), bool(said["is_kept"]))
    except (ValueError, KeyError, TypeError):
        return None


def main() -> int:
    """Holds the contests that standard input asks for, and ends when that is closed."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # compilers print
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    contests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, contests.put), daemon=True).start()

    def say(message: object) -> None:
        print(json.dumps(message), file=answers, flush=True)

    if torch.cuda.is_available():  # a full GPU takes no further process, whatever it is to do
        torch.empty(1, device="cuda")
    say(_READY)
    while True:
        answer = judge(pickle.loads(contests.get()))
        say({"verdict": asdict(answer.verdict), "is_kept": answer.is_kept})


def _listen(source: BinaryIO, heard: Callable[[bytes], None]) -> NoReturn:
    """Hears contests, until the one who asks is gone: then nobody is there to hear an answer."""
    while length := source.read(_LENGTH_BYTES):
        heard(source.read(int.from_bytes(length, "big")))
    os._exit(0)


def judge(contest: Contest) -> Answer:
    """Holds one contest. What it needs beyond all reason ends the process; see Process."""
    device = torch.device(contest.call.forms[0].device)
    try:
        with _current(device), torch.no_grad():
            answer = _held(contest, device)
    except UnsoundError:
        os._exit(1)
    except OUT_OF_MEMORY as error:
        answer = Answer(Verdict(TORCH, f"not tried: {reason_of(error)}"), is_kept=False)
    except Exception as error:  # of drivers, of Triton's compiler, of the operator
        answer = Answer(Verdict(TORCH, f"not tried: {reason_of(error)}"), is_kept=False)
    if device.type == "cuda":
        _demand_sound(device)
    return answer


def _held(contest: Contest, device: torch.device) -> Answer:
    operator = _operators(contest.table)[contest.call.operator]
    contest.settings.take()
    wanted, free = _COPIES * sum(form.size_bytes for form in contest.call.forms), _free_bytes(device)
    if free is not None and wanted > free // _MEMORY_SHARE:
        reason = f"not tried: needs {wanted >> 20} MiB, and {free >> 20} MiB are free"
        return Answer(Verdict(TORCH, reason), is_kept=False)
    launcher = launcher_of_this_process() if contest.is_launched and device.type == "cuda" else None
    return Answer(hold(operator, example(contest.call), launcher), is_kept=True)


def _operators(table: str) -> dict[str, Operator]:
    module, _, name = table.partition(":")
    found: dict[str, Operator] = getattr(importlib.import_module(module), name)
    return found


def _free_bytes(device: torch.device) -> int | None:
    """What is free of a GPU's memory."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0])


def _current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _demand_sound(device: torch.device) -> None:
    """Ends the process if the GPU answers nothing any more, as after an illegal address: no contest could."""
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main())
