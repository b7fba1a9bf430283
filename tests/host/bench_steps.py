"""Counts what a sampling step asks of torch in the webui: `python -m tests.host.bench_steps`.

Both sides in one server: the extension off for a picture, and on. Counts, no times.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .bench import ENVIRONMENT_CODE, environment
from .bench_cases import FLAGS
from .kit.start import StartFailed, start
from .kit.stop import stop
from .pair import Place, end_servers_when_terminated
from .picture import Picture
from .row import Group
from .rows.cost import PICTURES, SAMPLERS
from .session import Session
from .step_cost import drawn, install
from .step_counts import summary

# Checkpoint, attention (a key of FLAGS), pictures.
SERVERS = (("tiny", "sdp", PICTURES), ("tiny", "default", SAMPLERS), ("tiny_xl", "sdp", SAMPLERS))


def measured(place: Place, checkpoint: str, attention: str, pictures: tuple[Picture, ...]) -> dict[str, Any]:
    """The counts of these pictures in one webui, by their names: both sides, and what the server runs on."""
    group = Group("steps", (), checkpoint=checkpoint, flags=FLAGS[attention])
    launch = place.launch(group, ours=True)
    start(launch)
    try:
        session = Session(launch, ours=True)
        install(session)
        server = json.loads(session.client.run_code(ENVIRONMENT_CODE))
        return {"server": server, "pictures": {each.label: both_sides(session, each) for each in pictures}}
    finally:
        stop(launch.webui, launch.port)


def both_sides(session: Session, picture: Picture) -> dict[str, Any]:
    """What a step of this picture asks for, without our code and with it."""
    stock, ours = (drawn(session, picture, accel=accel)[1] for accel in (False, True))
    return {"stock": summary(stock), "ours": summary(ours)}


def write(file: Path, host: str, counts: dict[str, Any]) -> None:
    """Puts the counts of one host into the file; those of another stay."""
    kept = json.loads(file.read_text("utf-8")) if file.exists() else {}
    file.write_text(json.dumps(kept | {host: counts}, indent=1) + "\n", "utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m tests.host.bench_steps", description=description)
    parser.add_argument("--webui", type=Path, required=True, help="webui checkout, with sd-webui-controlnet")
    parser.add_argument("--venv", type=Path, required=True, help="its virtual environment")
    parser.add_argument("--json", type=Path, required=True, help="file to write; counts of diffusers stay")
    parser.add_argument("--port", type=int, default=7871, help="the server uses the port after this one")
    return parser.parse_args()


def main() -> int:
    """Count, and write the counts."""
    arguments = parse_arguments()
    end_servers_when_terminated()
    place = Place.make(arguments.webui, arguments.venv, arguments.port, accel=True)
    place.make_models({"tiny", "xl"})
    try:
        cases = {
            f"{checkpoint}, {attention} attention": measured(place, checkpoint, attention, pictures)
            for checkpoint, attention, pictures in SERVERS
        }
    except StartFailed as failure:
        sys.exit(str(failure))
    write(arguments.json, "webui", {"environment": environment(place), "cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main())
