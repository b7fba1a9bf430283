"""The routes: status for everyone, switches for those who may change settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from secrets import compare_digest
from typing import Any

from fastapi import APIRouter, Depends, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from pydantic import BaseModel


class Blocks(BaseModel):
    """How many blocks run which code."""

    direct: int
    compiled: int
    host: int


class Model(BaseModel):
    """One live model; `reasons` counts why blocks run as the host's modules."""

    name: str
    blocks: Blocks
    reasons: dict[str, int]


class Generation(BaseModel):
    """What happened since the latest generation began."""

    blocks: Blocks
    reasons: dict[str, int]
    model_calls: int
    fuse_s: float
    load_s: float
    networks: int


class Case(BaseModel):
    """What compiled code is worth for one kind of block, at sizes like this one."""

    block: str
    size: str
    dtype: str
    device: str
    code: str
    next_code: str
    reason: str
    difference: float | None
    tolerance: float | None
    ms: dict[str, float]


class Graphs(BaseModel):
    """What torch.compile has made, and what it is to make."""

    structures: int
    graphs: int
    recompiles: int
    compile_s: float
    reasons: list[str]
    pending: int
    making: str | None
    cases: list[Case]


class Status(BaseModel):
    """What runs how, and why."""

    version: str
    enabled: bool
    stand_aside: list[str]
    models: list[Model]
    generation: Generation
    graphs: Graphs
    summary: str


class Names(BaseModel):
    """Networks by the names that prompts have for them."""

    names: list[str]


class Forgotten(BaseModel):
    """How many choices there were."""

    choices: int


class ReadAhead(BaseModel):
    """Which networks are read ahead, and which names are nobody's."""

    found: list[str]
    unknown: list[str]


def parse_credentials(text: str | None) -> dict[str, str]:
    """Users and passwords of the webui's `--api-auth user:password,user:password`."""
    return dict(entry.split(":", 1) for entry in (text or "").split(",") if ":" in entry)


def router(
    *,
    status: Callable[[], Mapping[str, Any]],
    switch: Callable[[bool], None] | None,
    read_ahead: Callable[[Sequence[str]], tuple[list[str], list[str]]],
    forget: Callable[[], int],
    credentials: Mapping[str, str],
) -> APIRouter:
    """The routes below /accel/v1.

    status: gives the report as plain values. switch: turns acceleration on or off, raising PermissionError
    with the reason if settings must not change; None leaves out all routes that do more than tell.
    read_ahead: reads the files of these networks soon, and returns the names that it found and did not find.
    forget: forgets which code was chosen for which block, and returns how many choices that were.
    credentials: passwords by user; if there are any, every route asks for one of them.
    """
    guards = [Depends(_guard(credentials))] if credentials else []
    routes = APIRouter(prefix="/accel/v1", tags=["accel"], dependencies=guards)

    @routes.get("/status", response_model=Status)
    def get_status() -> Mapping[str, Any]:
        """What runs how, and why."""
        return status()

    if switch is None:
        return routes

    def turn(on: bool) -> Mapping[str, Any]:
        try:
            switch(on)
        except PermissionError as error:
            raise HTTPException(403, str(error)) from None
        return status()

    @routes.post("/enable", response_model=Status)
    def enable() -> Mapping[str, Any]:
        """Turns acceleration on; takes effect at the next call of a model."""
        return turn(True)

    @routes.post("/disable", response_model=Status)
    def disable() -> Mapping[str, Any]:
        """Turns acceleration off; takes effect at the next call of a model."""
        return turn(False)

    @routes.post("/loras/prefetch", response_model=ReadAhead)
    def prefetch(wanted: Names) -> Mapping[str, Any]:
        """Reads the files of LoRAs that a later request will name, and answers before that is done."""
        found, unknown = read_ahead(wanted.names)
        return {"found": found, "unknown": unknown}

    @routes.delete("/cache", response_model=Forgotten)
    def clear_cache() -> Mapping[str, Any]:
        """Forgets which code was chosen for which block; what torch has compiled stays on disk."""
        return {"choices": forget()}

    return routes


def _guard(credentials: Mapping[str, str]) -> Callable[..., None]:
    basic = HTTPBasic()

    def check(given: HTTPBasicCredentials = Depends(basic)) -> None:  # noqa: B008
        expected: Sequence[str] = [credentials[given.username]] if given.username in credentials else []
        if not any(compare_digest(given.password.encode(), each.encode()) for each in expected):
            raise HTTPException(401, "Incorrect username or password", headers={"WWW-Authenticate": "Basic"})

    return check
