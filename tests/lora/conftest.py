"""Models that a test may change."""

import pytest

from tests.lora.parts import Parts


@pytest.fixture
def parts() -> Parts:
    """A UNet and a text encoder with nothing fused."""
    return Parts()
