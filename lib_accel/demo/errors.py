"""What can be wrong with what the demo is given."""

from __future__ import annotations

from lib_accel.errors import AccelError


class DemoError(AccelError):
    """A path, size or device that cannot be used. The message says in one line what came, what was expected
    and what to do."""


def refused(subject: object, *, got: str, expected: str, do: str) -> DemoError:
    """The error for a `subject` (a path, a size, a device) that is not what it should be."""
    return DemoError(f"{subject}: got {got}, expected {expected}; {do}")
