"""The commands: run, export, score, convert."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from lib_accel.errors import AccelError

_WORK = Path("tmp/train")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 1 if the time was over before the training, 2 if it cannot work."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", filename=arguments.log)
    try:
        return int(_COMMANDS[arguments.command](arguments))
    except AccelError as error:
        print(f"train: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lib_accel.demo.train", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--log", type=Path, help="file for the log (default: stderr)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="trains, going on where the last run stopped")
    export = commands.add_parser("export", help="writes the trained model into the data folder")
    score = commands.add_parser("score", help="judges the model in the data folder, and writes its card")
    convert = commands.add_parser("convert", help="writes one file in the original layout, with its yaml")
    for command in (run, export, score):
        command.add_argument("--work", type=Path, default=_WORK, help=f"training's folder (default {_WORK})")
        command.add_argument("--device", default="cpu", help="torch's name of a device (default cpu)")
    for command in (run, score):
        command.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    run.add_argument("--minutes", type=float, default=45.0, help="stop after so long (default 45)")
    for command in (run, export):
        command.add_argument("--share", type=float, default=1.0, help="of all steps, for a try (default 1)")
    for command in (export, score):
        command.add_argument("--data", type=Path, help="another data folder than the demo's")
    score.add_argument("--sheets", type=Path, help="folder for sheets of the judged pictures")
    convert.add_argument("--model", type=Path, help="a pipeline's folder (default: the demo's)")
    convert.add_argument("--out", type=Path, required=True, help="folder to write into")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    import torch

    from lib_accel.demo.train.loop import OutOfTime
    from lib_accel.demo.train.stages import open_workshop, train_all

    torch.set_num_threads(arguments.threads)
    try:
        train_all(open_workshop(arguments.work, arguments.minutes, arguments.device, arguments.share))
    except OutOfTime as end:
        print(f"time is over: {end}; run the same command again to go on")
        return 1
    print("trained; `export` writes the model, `score` judges it")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from lib_accel.demo.embedded import DATA
    from lib_accel.demo.train.export import export_all
    from lib_accel.demo.train.stages import open_workshop

    files = export_all(
        open_workshop(arguments.work, 0, arguments.device, arguments.share), arguments.data or DATA
    )
    for file in files:
        print(f"{file.stat().st_size / 2**20:6.2f} MiB  {file.name} of {file.parent.name}")
    return 0


def _score(arguments: argparse.Namespace) -> int:
    import torch

    from lib_accel.demo.embedded import DATA
    from lib_accel.demo.train.report import judge_and_write

    torch.set_num_threads(arguments.threads)
    judge_and_write(arguments.data or DATA, arguments.work, arguments.device, arguments.sheets)
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from lib_accel.demo.embedded import DATA
    from lib_accel.demo.train.convert import convert

    file = convert(arguments.model or DATA / "model", arguments.out)
    print(f"written: {file.name}, {file.stem}.yaml and {file.stem}-clip")
    return 0


_COMMANDS = {"run": _run, "export": _export, "score": _score, "convert": _convert}
