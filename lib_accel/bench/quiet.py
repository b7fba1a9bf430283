"""Keeps remarks of other libraries out of a command's output."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import transformers.utils.logging


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside the `with` block diffusers, transformers and peft tell errors only, and draw no bars.

    What they remark on is no fault: a missing torchvision, a network without a text encoder's part, a second
    adapter, a name that one of them still uses of another.
    """
    with contextlib.ExitStack() as undo:
        undo.enter_context(warnings.catch_warnings())
        for kind in (UserWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        _hush(transformers.utils.logging, undo)
        # Imported only now, since its import is what transformers remarks on.
        import diffusers.utils.logging

        _hush(diffusers.utils.logging, undo)
        yield


def _hush(log: Any, undo: contextlib.ExitStack) -> None:
    undo.callback(log.set_verbosity, log.get_verbosity())
    log.set_verbosity_error()
    if getattr(log, "is_progress_bar_enabled", _always)():  # older versions cannot be asked
        undo.callback(log.enable_progress_bar)
        log.disable_progress_bar()


def _always() -> bool:
    return True
