"""End the server that start.py runs for this webui and port."""

from __future__ import annotations

import argparse
from pathlib import Path

from .running_server import RunningServer, state_folder


def stop(webui: Path, port: int) -> str:
    """End the recorded process, if it still runs; say what happened."""
    state = state_folder(webui, port)
    server = RunningServer.load(state)
    if server is None:
        return f"no server of this kit on port {port}"
    was_alive = server.alive()
    server.end()
    (state / "server.json").unlink()
    return f"pid {server.pid} {'ended' if was_alive else 'had ended already'}"


def main() -> None:
    """Parse the command line and stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--webui", type=Path, required=True, help="webui checkout")
    parser.add_argument("--port", type=int, default=7861)
    arguments = parser.parse_args()
    print(stop(arguments.webui.resolve(), arguments.port))


if __name__ == "__main__":
    main()
