"""The routes: status for everyone, switches and tasks for those who may change settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from secrets import compare_digest
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from lib_accel.api import models
from lib_accel.errors import TaskError
from lib_accel.operations import Operations
from lib_accel.painter import Wanted

T = TypeVar("T")

# What went wrong, in words. 400: the body is not JSON. 409: not now, or not as asked.
_TOLD: dict[str, Any] = {"description": "Not done, and why", "model": models.Refusal}


def parse_credentials(text: str | None) -> dict[str, str]:
    """Users and passwords of the webui's `--api-auth user:password,user:password`."""
    return dict(entry.split(":", 1) for entry in (text or "").split(",") if ":" in entry)


def router(
    operations: Operations,
    *,
    switch: Callable[[bool], None] | None,
    read_ahead: Callable[[Sequence[str]], tuple[list[str], list[str]]],
    credentials: Mapping[str, str],
) -> APIRouter:
    """The routes below /accel/v1.

    switch: turns acceleration on or off, raising PermissionError with the reason if settings must not change;
    None leaves out all routes that do more than tell. read_ahead: reads the files of these networks soon, and
    returns the names that it found and did not find. credentials: passwords by user; if there are any, every
    route asks for one of them.
    """
    guards = [Depends(_guard(credentials))] if credentials else []
    answers: dict[int | str, dict[str, Any]] = {401: _TOLD} if credentials else {}
    routes = APIRouter(prefix="/accel/v1", tags=["accel"], dependencies=guards, responses=answers)
    _add_status(routes, operations)
    if switch is not None:
        _add_report(routes, operations)
        _add_switching(routes, operations, switch)
        _add_working(routes, operations)
        _add_loras(routes, read_ahead)
    return routes


def _add_status(routes: APIRouter, operations: Operations) -> None:
    @routes.get("/status", response_model=models.Status)
    def get_status() -> Mapping[str, Any]:
        """What runs how, and why."""
        return operations.status()


def _add_report(routes: APIRouter, operations: Operations) -> None:
    @routes.get("/report", response_model=models.Report)
    def get_report() -> Mapping[str, Any]:
        """What a developer needs to know of this installation, to be sent to one."""
        return {"text": operations.report()}


def _add_switching(routes: APIRouter, operations: Operations, switch: Callable[[bool], None]) -> None:
    def turn(on: bool) -> Mapping[str, Any]:
        try:
            switch(on)
        except PermissionError as error:
            raise HTTPException(403, str(error)) from None
        return operations.status()

    @routes.post("/enable", response_model=models.Status, responses={403: _TOLD})
    def enable() -> Mapping[str, Any]:
        """Turns acceleration on; takes effect at the next call of a model."""
        return turn(True)

    @routes.post("/disable", response_model=models.Status, responses={403: _TOLD})
    def disable() -> Mapping[str, Any]:
        """Turns acceleration off; takes effect at the next call of a model."""
        return turn(False)

    @routes.delete("/cache", response_model=models.Forgotten)
    def clear_cache() -> Mapping[str, Any]:
        """Forgets which code was chosen for which block; what torch has compiled stays on disk."""
        return {"choices": operations.forget()}


def _add_working(routes: APIRouter, operations: Operations) -> None:
    # Plain functions: the framework runs them on threads, where they may wait for their turn to draw.
    @routes.post("/warmup", response_model=models.Warm, responses={400: _TOLD, 409: _TOLD})
    def warm_up(wanted: models.WarmUp) -> Mapping[str, Any]:
        """Draws a picture of this size, compiles what it asked for, and answers when that is done."""
        sizes = {"width": wanted.width, "height": wanted.height, "batch_size": wanted.batch_size}
        return asdict(_done(lambda: operations.warm_up(Wanted(**sizes))))

    @routes.post("/benchmark", response_model=models.Benchmark, responses={400: _TOLD, 409: _TOLD})
    def benchmark(wanted: models.Measure) -> Mapping[str, Any]:
        """Draws pictures with 0, 1 and 4 LoRAs, with and without acceleration in turn; takes minutes."""
        sizes = {"width": wanted.width, "height": wanted.height, "steps": wanted.steps}
        return _done(lambda: operations.benchmark(Wanted(**sizes))).as_dict()

    @routes.post("/cancel", response_model=models.Cancelled)
    def cancel() -> Mapping[str, Any]:
        """Ends a warm-up or a benchmark soon."""
        return {"cancelled": operations.cancel()}


def _add_loras(routes: APIRouter, read_ahead: Callable[[Sequence[str]], tuple[list[str], list[str]]]) -> None:
    @routes.post("/loras/prefetch", response_model=models.ReadAhead, responses={400: _TOLD})
    def prefetch(wanted: models.Names) -> Mapping[str, Any]:
        """Reads the files of LoRAs that a later request will name, and answers before that is done."""
        found, unknown = read_ahead(wanted.names)
        return {"found": found, "unknown": unknown}


def _done(work: Callable[[], T]) -> T:
    try:
        return work()
    except TaskError as error:
        raise HTTPException(409, str(error)) from None


def _guard(credentials: Mapping[str, str]) -> Callable[..., None]:
    basic = HTTPBasic()

    def check(given: HTTPBasicCredentials = Depends(basic)) -> None:  # noqa: B008
        expected: Sequence[str] = [credentials[given.username]] if given.username in credentials else []
        if not any(compare_digest(given.password.encode(), each.encode()) for each in expected):
            raise HTTPException(401, "Incorrect username or password", headers={"WWW-Authenticate": "Basic"})

    return check
