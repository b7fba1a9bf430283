"""Alphas that stand beside the tensors: in a file's header (diffusers), or in a file next to it (peft)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any


class AdapterConfig:
    """peft's LoraConfig of one adapter, or of several whose settings begin with a component's name."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings

    def alpha(self, component: str, path: str, rank: int) -> float | None:
        """The alpha of a layer at a dotted `path`, such that alpha / rank is its strength; None if not said.

        Follows peft: a pattern holds for a path that ends with it, and rank-stabilised LoRA
        (arXiv:2312.03732) has the strength alpha / sqrt(rank).
        """
        alpha = self._setting(component, "lora_alpha")
        for pattern, other in (self._setting(component, "alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", path):
                alpha = other
                break
        if alpha is None:
            return None
        return float(alpha) * (math.sqrt(rank) if self._setting(component, "use_rslora") else 1.0)

    def _setting(self, component: str, name: str) -> Any:
        return self._settings.get(f"{component}.{name}", self._settings.get(name))
