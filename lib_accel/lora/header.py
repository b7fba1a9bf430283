"""What a file's header says, or peft's settings beside it: alphas, and what a network was made for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

# What trainers call the architecture, by how it begins: sd-scripts', ai-toolkit's, then modelspec's, which is
# also OneTrainer's.
_FAMILIES = (
    ("sd_v1", "SD1"),
    ("sd_v2", "SD2"),
    ("sdxl", "SDXL"),
    ("sd_1", "SD1"),
    ("sd_2", "SD2"),
    ("stable-diffusion-v1", "SD1"),
    ("stable-diffusion-v2", "SD2"),
    ("stable-diffusion-xl-v1-refiner", "the SDXL refiner"),
    ("stable-diffusion-xl", "SDXL"),
)
_BY_SD_V2 = {"True": "SD2", "False": "SD1"}


def family(header: Mapping[str, str]) -> str | None:
    """What a network was made for by its header: "SD1", "SD2", "SDXL", another's name as it is, or None.

    sd-scripts writes ss_base_model_version, before that only ss_v2, which says False for SDXL too where that
    stands beside it; newer ones and OneTrainer write modelspec.architecture, as
    "stable-diffusion-xl-v1-base/lora" (github.com/Stability-AI/ModelSpec).
    """
    for key in ("modelspec.architecture", "ss_base_model_version"):
        said = header.get(key, "").lower()
        if said:
            return next((known for begin, known in _FAMILIES if said.startswith(begin)), said.split("/")[0])
    return _BY_SD_V2.get(header.get("ss_v2", ""))


class AdapterConfig:
    """peft's settings of one adapter, or of several whose settings begin with a component's name."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings

    def alpha(self, kind: str, component: str, path: str, rank: int | None) -> float | None:
        """The alpha of a layer at a dotted `path`, such that alpha / rank is its strength; None if not said.

        A rank of None is one that the tensors do not tell, for which alpha is the strength itself.
        Follows peft: a pattern holds for a path that ends with it, and rank-stabilised LoRA
        (arXiv:2312.03732) has the strength alpha / sqrt(rank). For peft's OFT it is the terms of the series,
        0 for the exact rotation (oft/config.py).
        """
        if kind == "OFT of peft":
            is_series = self._setting(component, "use_cayley_neumann")
            terms = self._setting(component, "num_cayley_neumann_terms")
            return 0.0 if is_series is False else terms
        alpha = self._by_pattern(component, path, "alpha_pattern", ("lora_alpha", "alpha"))
        if alpha is None or (rank is None and kind != "LoKr"):
            return None
        if rank is None:
            said = self._by_pattern(component, path, "rank_pattern", ("r",))
            return float(alpha) / float(said) if said else None
        return float(alpha) * (math.sqrt(rank) if self._setting(component, "use_rslora") else 1.0)

    def _by_pattern(self, component: str, path: str, patterns: str, names: tuple[str, ...]) -> Any:
        """The setting of one layer: that of the first pattern that it fits, or else that of all layers."""
        for pattern, value in (self._setting(component, patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", path):
                return value
        said = (self._setting(component, name) for name in names)
        return next((value for value in said if value is not None), None)

    def _setting(self, component: str, name: str) -> Any:
        return self._settings.get(f"{component}.{name}", self._settings.get(name))
