"""The layers of an OpenCLIP text encoder, as the webui's SD2 and SDXL models have them."""

from __future__ import annotations

ENTRIES = ()
