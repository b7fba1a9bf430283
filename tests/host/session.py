"""One server under test, and what a row has to remember of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import runs, stand_in
from .kit.client import ApiError, Client, controlnet_unit, diff, encode, left_half, outline, scene
from .kit.start import Launch
from .outcome import Blocks, Outcome
from .picture import Picture, Unit

MOVED_MEAN = 0.05  # 8-bit steps; a picture that must differ from another does so by more than this
TRACEBACK = "Traceback (most recent call last)"
NO_REMOTE = "Failed reading extension data from Git repository"


class Session:
    """A client of one server; ``ours``: it has the extension, ``replays``: and a stand-in for CUDA graphs."""

    def __init__(self, launch: Launch, *, ours: bool, auth: str = "", replays: bool = False):
        self.launch = launch
        self.ours = ours
        self.replays = replays
        self.client = Client(launch.url, auth=auth)
        self.pictures: dict[str, list[Image.Image]] = {}
        self.values: dict[str, NDArray[np.float32]] = {}
        self.saved: dict[str, Any] = {}

    @property
    def side(self) -> str:
        """Word for this server in messages."""
        return "ours" if self.ours else "stock"

    def begin_server(self) -> None:
        """Put into a server that has just started what it needs beside its extensions."""
        if self.replays:
            told = self.client.run_code(stand_in.INSTALL)
            assert not told.strip(), told

    def begin_row(self) -> None:
        """Forget the pictures and the numbers of the row before."""
        self.pictures.clear()
        self.values.clear()

    def end_row(self) -> None:
        """Set the options back that the row changed, the latest first."""
        while self.saved:
            key, value = self.saved.popitem()
            self.client.options(**{key: value})

    def set_options(self, changes: dict[str, Any]) -> None:
        """Change options until the end of the row."""
        code = (
            f"import json; print(json.dumps({{key: getattr(shared.opts, key) for key in {list(changes)}}}))"
        )
        before = json.loads(self.client.run_code(code))  # the API lists no options of extensions
        self.saved |= {key: value for key, value in before.items() if key not in self.saved}
        self.client.options(**changes)

    def tracebacks(self) -> int:
        """How many tracebacks are in the server's log, but for those on a repository without remote."""
        log = self.launch.log.read_text(errors="replace")
        return log.count(TRACEBACK) - log.count(NO_REMOTE)

    def status(self) -> dict[str, Any]:
        """Status of the extension."""
        status: dict[str, Any] = self.client.call("/accel/v1/status")
        return status

    def draw(self, picture: Picture) -> Outcome:
        """Generate ``picture`` and check what can be checked without the other server."""
        # A VAE that runs directly is not the part that is meant.
        unet = ("unet",) * (picture.speed.kind == "part")
        with self.demanding((*picture.runs, *unet)) as problems:
            outcome = self.drawn(picture)
        outcome.problems += problems
        return outcome

    @contextlib.contextmanager
    def demanding(self, parts: Sequence[str]) -> Iterator[list[str]]:
        """Count what runs directly in the block; the list is filled after it, for our server only."""
        problems: list[str] = []
        if not (parts and self.ours):
            yield problems
            return
        self.client.run_code(runs.COUNT)
        yield problems
        problems += runs.problems(parts, self.client.run_code(runs.TELL))

    def drawn(self, picture: Picture) -> Outcome:
        """Generate ``picture``; what its parts ran at is not looked at."""
        outcome = Outcome(picture.label, speed=picture.speed)
        try:
            result = self.client.generate(self.request(picture))
        except ApiError as error:
            outcome.text = str(error)[:300]
            if not picture.fails:
                outcome.problems.append(f"{self.side}: {str(error)[:300]}")
            return outcome
        if picture.fails:
            outcome.problems.append("the request did not fail")
        outcome.images, outcome.seconds = result.images, result.seconds
        outcome.problems += self.compare_with_earlier(picture, result.images)
        self.pictures[picture.label] = result.images
        if self.ours:
            outcome.blocks = Blocks.of_status(self.status())
        return outcome

    def request(self, picture: Picture) -> dict[str, Any]:
        """Body of the request for ``picture``."""
        fields = dict(picture.fields)
        size = fields.get("width", 128), fields.get("height", 128)
        if picture.image:
            fields = {"init_images": [encode(scene(*size))], "denoising_strength": 0.6} | fields
        if picture.mask:
            fields["mask"] = encode(left_half(*size))
        always_on: dict[str, Any] = {name: {"args": args} for name, args in picture.scripts.items()}
        if picture.units:
            always_on["controlnet"] = {"args": [unit_body(unit, *size) for unit in picture.units]}
        if self.ours and picture.accel is not None:
            always_on["accel"] = {"args": [picture.accel]}
        return fields | {"alwayson_scripts": always_on}

    def compare_with_earlier(self, picture: Picture, images: list[Image.Image]) -> list[str]:
        """Whether the picture moved away from, or came back to, an earlier one of the same row and server."""
        side, problems = self.side, []
        if picture.moves:
            mean = diff(images[0], self.pictures[picture.moves][0]).mean
            if mean <= MOVED_MEAN:
                problems.append(f"{side}: does nothing, only {mean:.3f} from {picture.moves!r}")
        if picture.same:
            far = max(diff(*pair).max for pair in zip(images, self.pictures[picture.same], strict=False))
            if far:
                problems.append(f"{side}: {far:.0f} from {picture.same!r}, should be equal")
        return problems


def unit_body(unit: Unit, width: int, height: int) -> dict[str, Any]:
    """One ControlNet unit as its API takes it."""
    hint = scene(width, height) if unit.coloured else outline(width, height)
    if unit.turned:
        hint = hint.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return controlnet_unit(hint, unit.model, **unit.fields)
