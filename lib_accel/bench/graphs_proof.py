"""What measuring chooses for each block of a model: the host's code, ours as it stands, or ours compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lib_accel.bench.graphs_choice import Backends, own_choice
from lib_accel.bench.graphs_models import DIFFUSERS, place
from lib_accel.bench.graphs_subjects import Picture, Subject, subject
from lib_accel.choice import MEASURED
from lib_accel.graphs.compiler import inductor

Figures = dict[str, Any]


def proof_of(
    width: str,
    *,
    backends: Backends = inductor,
    tell: Callable[[str], object] = lambda part: None,
) -> Figures:
    """A row for each case of a call of the UNet with guidance: what it ran how fast, what is chosen and why.

    The UNet is `ldm`'s, or diffusers' where `ldm` is missing.
    """
    where = place(width)
    choice = own_choice(backends)
    try:
        package, given = "ldm", subject("ldm", width, where, choice, code=MEASURED)
    except ImportError:
        package, given = DIFFUSERS, subject(DIFFUSERS, width, where, choice, code=MEASURED)
    picture = Picture("proof", where.side, where.side)
    try:
        tell(f"proof of {width}: compiling")
        given.call(picture)
        given.warm_up()
        tell(f"proof of {width}: measuring")
        _prove_all(given, picture)
        graphs = given.report().graphs
    finally:
        given.close()
    return {
        "package": package,
        "device": where.device.type,
        "dtype": str(where.dtype).removeprefix("torch."),
        "input": f"{picture.batch}x4x{picture.height}x{picture.width}",
        "cases": [
            {
                "block": case.block,
                "size": case.size,
                "tolerance": case.tolerance,
                "difference": case.difference,
                "ms": dict(case.ms),
                "choice": case.next_code,
                "reason": case.reason,
            }
            for case in graphs.cases
        ],
    }


def _prove_all(given: Subject, picture: Picture) -> None:
    """Pictures until each case has its proof: of a picture's time proofs get a share only."""
    left, before = _unproved(given), -1
    while left and left != before:
        given.begin_generation()
        given.call(picture)
        left, before = _unproved(given), left


def _unproved(given: Subject) -> int:
    """Cases that have a graph and no verdict yet."""
    return sum(case.reason == "to be proved" for case in given.report().graphs.cases)
