"""What can go wrong, as a tree.

AccelError
├── OptionError      an option has a value that can never work
├── PipelineError    a pipeline has nothing that could be accelerated
├── TaskError        a warm-up or benchmark that cannot be done as asked, or not now
│   └── TaskCancelled    one that its user ended
├── LayoutError      a module is not of the shape that its class promises
├── CompileError     a block cannot be compiled
└── CaptureError     a call cannot be captured in a graph

LayoutError, CompileError and CaptureError never end a generation: the part concerned runs as the host's own
module, uncompiled, or kernel by kernel, and the report says why. The others answer a request that cannot be
met, before anything is changed. Rooms have their own beside their code: lora (LoraError),
storage (StorageError), demo (DemoError).
"""

from __future__ import annotations


class AccelError(Exception):
    """Base of everything that this library raises on purpose."""


class OptionError(AccelError, ValueError):
    """An option's value is outside its range. The message names option, value and range."""


class LayoutError(AccelError):
    """A live module does not look as its class promises. The message is the reason that the report shows."""


class PipelineError(AccelError, TypeError):
    """What was to be accelerated cannot be. The message says what it is and what is expected."""


class TaskError(AccelError, ValueError):
    """A warm-up or a benchmark cannot be done as asked, or not now. The message says why and what to do."""


class TaskCancelled(TaskError):
    """The user ended a warm-up or a benchmark, or interrupted the program that draws its pictures."""


class CompileError(AccelError):
    """There is no graph for a block. The message is the reason that the report shows."""


class CaptureError(AccelError):
    """A call cannot be captured in a graph. The message is the reason that the report shows."""


def reason_of(error: BaseException) -> str:
    """Kind and first line of an error; of a CaptureError the line alone, which says what it is."""
    line = (str(error).splitlines() or [""])[0]
    return line if isinstance(error, CaptureError) else f"{type(error).__name__}: {line}"
