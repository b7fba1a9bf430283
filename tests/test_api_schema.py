"""The API keeps to what it says of itself in /docs, whatever it is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode

from lib_accel.api.routes import router
from lib_accel.report import FormatCase, TuningCase, TuningReport
from tests.fakes.operations import FakeOperations

_OPERATIONS = (
    "DELETE /accel/v1/cache",
    "GET /accel/v1/report",
    "GET /accel/v1/status",
    "POST /accel/v1/benchmark",
    "POST /accel/v1/cancel",
    "POST /accel/v1/disable",
    "POST /accel/v1/enable",
    "POST /accel/v1/loras/prefetch",
    "POST /accel/v1/warmup",
)
_WITH_BODY = ("POST /accel/v1/benchmark", "POST /accel/v1/loras/prefetch", "POST /accel/v1/warmup")


def _known(names: Sequence[str]) -> tuple[list[str], list[str]]:
    return list(names), []


def _operations(folder: Path, credentials: Mapping[str, str]) -> dict[str, Any]:
    app, operations = FastAPI(), FakeOperations(folder)
    app.include_router(router(operations, switch=lambda on: None, read_ahead=_known, credentials=credentials))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    return {operation.ok().label: operation.ok() for operation in schema.get_all_operations()}


def _ask(operation: Any, mode: GenerationMode, judge: Callable[[Any, Any], None]) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def ask(case: Any) -> None:
        judge(case, case.call(auth=("ann", "wrong")))

    ask()


def test_all_operations_are_asked(tmp_path: Path) -> None:
    assert tuple(sorted(_operations(tmp_path, {}))) == _OPERATIONS


@pytest.mark.parametrize("name", _OPERATIONS)
def test_every_answer_is_as_the_schema_says(tmp_path: Path, name: str) -> None:
    operation = _operations(tmp_path, {})[name]
    _ask(operation, GenerationMode.POSITIVE, lambda case, answer: case.validate_response(answer))


@pytest.mark.parametrize("name", _WITH_BODY)
def test_a_body_against_the_schema_is_refused_as_it_says(tmp_path: Path, name: str) -> None:
    operation = _operations(tmp_path, {})[name]
    _ask(operation, GenerationMode.NEGATIVE, lambda case, answer: case.validate_response(answer))


@pytest.mark.parametrize("name", _OPERATIONS)
def test_a_wrong_password_is_told_as_the_schema_says(tmp_path: Path, name: str) -> None:
    def judge(case: Any, answer: Any) -> None:
        case.validate_response(answer)
        assert answer.status_code == 401

    _ask(_operations(tmp_path, {"ann": "secret"})[name], GenerationMode.POSITIVE, judge)


def test_status_tells_what_was_measured_of_operators_and_formats(tmp_path: Path) -> None:
    app, operations = FastAPI(), FakeOperations(tmp_path)
    app.include_router(router(operations, switch=None, read_ahead=_known, credentials={}))
    case = TuningCase(
        "attention", "2x64x8", "float16", "cuda:0", "torch", "cuDNN", "faster", 1e-4, 2e-3, {"torch": 0.4}
    )
    tuning = TuningReport(
        [case], 3, "group norm", 7.5, "ended", ["no sage"], [FormatCase("UNet", True, "measured")]
    )
    report = replace(operations.engine.report(), tuning=tuning)
    operations.engine.report = lambda: report  # type: ignore[method-assign]
    assert TestClient(app).get("/accel/v1/status").json()["tuning"] == asdict(tuning)
