"""A step that asks for what the text encoders make of prompts, as numbers."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .outcome import Outcome
from .session import TRACEBACK, Session

MOVED = 1e-3  # of the largest number; one that must differ from another does so by more

# Prints all numbers, float32 in base64. SDXL has a dict of two tensors, the others have one tensor.
ENCODE = """
import base64
import torch
from modules import devices, sd_models
prompts = {prompts!r}
with torch.no_grad(), devices.autocast():
    found = sd_models.model_data.sd_model.get_learned_conditioning(prompts)
tensors = list(found.values()) if isinstance(found, dict) else [found]
numbers = torch.cat([tensor.float().flatten() for tensor in tensors])
print(base64.b64encode(numbers.cpu().numpy().tobytes()).decode())
"""


@dataclass(frozen=True)
class Condition:
    """Encode prompts together; ``moves`` and ``same`` name an earlier step of the row, as in a picture."""

    label: str
    prompts: tuple[str, ...]
    runs: tuple[str, ...]
    moves: str = ""
    same: str = ""

    def run(self, session: Session) -> list[Outcome]:
        """Encode them."""
        outcome = Outcome(self.label)
        with session.demanding(self.runs) as problems:
            text = session.client.run_code(ENCODE.format(prompts=list(self.prompts)))
        outcome.problems += problems
        if TRACEBACK in text:
            outcome.problems.append(f"{session.side}: printed {text[-300:]!r}")
            return [outcome]
        outcome.values = session.values[self.label] = np.frombuffer(base64.b64decode(text), np.float32)
        outcome.problems += self.compare_with_earlier(session, outcome.values)
        return [outcome]

    def compare_with_earlier(self, session: Session, values: NDArray[np.float32]) -> list[str]:
        """Whether the numbers moved away from, or came back to, earlier ones of the same row and server."""
        problems = []
        if not np.isfinite(values).all():
            problems.append(f"{session.side}: not all numbers are finite")
        if self.moves and _distance(session.values[self.moves], values) <= MOVED:
            problems.append(f"{session.side}: does nothing to {self.moves!r}")
        if self.same and not np.array_equal(session.values[self.same], values):
            problems.append(f"{session.side}: not equal to {self.same!r}")
        return problems


def _distance(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """Largest difference, as a part of the largest number; numbers of another count are as far as can be."""
    if before.shape != after.shape:
        return float("inf")
    return float(abs(before - after).max() / abs(before).max())
