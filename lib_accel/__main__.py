"""The command line: `python -m lib_accel demo|bench|doctor ...`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# Each command's module has `main(argv) -> exit status`, and reads the rest of the line itself.
_COMMANDS = {
    "demo": ("lib_accel.demo.cli", "makes pictures with and without us, and compares them"),
    "bench": ("lib_accel.bench.cli", "measures speed against what diffusers does"),
    "doctor": ("lib_accel.doctor.cli", "says what works on this machine, and what to do about the rest"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 2 if what was asked for cannot work."""
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    # Only the first word is ours: a command's own --help and --version go to the command.
    command = parser.parse_args(words[:1]).command
    if command is None:
        parser.print_help()
        return 2
    return _run(command, words[1:])


def _run(command: str, words: list[str]) -> int:
    from lib_accel.errors import AccelError
    from lib_accel.requirements import OLDEST

    try:
        room = importlib.import_module(_COMMANDS[command][0])
        return int(room.main(words))
    except AccelError as error:
        print(f"{command}: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in (*OLDEST, "numpy", "PIL", "matplotlib", "tqdm"):
            raise
        print(f"{command}: {package} is not installed; run `python run.py {command}`", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    from lib_accel import __version__

    commands = "\n".join(f"  {name:<8} {text}" for name, (_, text) in _COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m lib_accel",
        usage="%(prog)s [-h] [--version] COMMAND ...",
        description=f"commands:\n{commands}",
        epilog="`python -m lib_accel COMMAND --help` says more about each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sd-webui-accel {__version__}")
    parser.add_argument(
        "command", nargs="?", choices=tuple(_COMMANDS), metavar="COMMAND", help=argparse.SUPPRESS
    )
    return parser


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 - an older Python can still start this file
        print(f"lib_accel: got Python {sys.version.split()[0]}, expected 3.10 or newer", file=sys.stderr)
        sys.exit(2)
    sys.exit(main())
