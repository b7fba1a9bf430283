"""The HTTP interface: what it says, whom it lets in, and what it changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lib_accel.api.routes import parse_credentials, router
from lib_accel.engine import Engine
from lib_accel.painter import Wanted
from tests.fakes.host import FakeHost, attached
from tests.fakes.models import inputs, run, tiny_unet
from tests.fakes.operations import FakeOperations
from tests.test_pictures import PICTURE

SWITCHES = ("/accel/v1/enable", "/accel/v1/disable")
PREFETCH = "/accel/v1/loras/prefetch"
TASKS = ("/accel/v1/warmup", "/accel/v1/benchmark")
MUTATING = (*SWITCHES, *TASKS, "/accel/v1/cancel", PREFETCH)
TELLING = ("/accel/v1/status", "/accel/v1/report")


class Switch:
    """Keeps what was asked for, or refuses."""

    def __init__(self, refusal: str | None = None) -> None:
        self.turned: list[bool] = []
        self.refusal = refusal

    def __call__(self, on: bool) -> None:
        if self.refusal is not None:
            raise PermissionError(self.refusal)
        self.turned.append(on)


def read_ahead(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Knows names of one letter."""
    return [name for name in names if len(name) == 1], [name for name in names if len(name) != 1]


@pytest.fixture(autouse=True)
def operations(tmp_path: Path) -> FakeOperations:
    _made.append(FakeOperations(tmp_path))
    return _made[-1]


_made: list[FakeOperations] = []  # of each test, the last of which `client` asks


def client(switch: Any = None, credentials: dict[str, str] | None = None) -> TestClient:
    app = FastAPI()
    app.include_router(router(_made[-1], switch=switch, read_ahead=read_ahead, credentials=credentials or {}))
    return TestClient(app)


def test_choices_are_forgotten_and_counted() -> None:
    answer = client(Switch()).delete("/accel/v1/cache")
    assert (answer.status_code, answer.json()) == (200, {"choices": 0})


def test_choices_stay_where_settings_must_not_change() -> None:
    assert client().delete("/accel/v1/cache").status_code in (404, 405)


def test_the_cache_asks_for_the_password_too() -> None:
    guarded = client(Switch(), {"user": "secret"})
    assert guarded.delete("/accel/v1/cache").status_code == 401
    assert guarded.delete("/accel/v1/cache", auth=("user", "secret")).status_code == 200


def test_status_has_its_shape() -> None:
    status = client().get("/accel/v1/status").json()
    assert {name: type(value) for name, value in status.items()} == {
        "version": str,
        "enabled": bool,
        "stand_aside": list,
        "models": list,
        "generation": dict,
        "graphs": dict,
        "launches": dict,
        "tuning": dict,
        "summary": str,
        "pictures": list,
        "networks": list,
        "memory": list,
        "cache": dict,
        "task": type(None),
        "benchmark": type(None),
        "advice": dict,
        "options": dict,
    }
    assert set(status["generation"]) == {
        "blocks",
        "reasons",
        "model_calls",
        "replayed",
        "fuse_s",
        "load_s",
        "networks",
        "control_models",
    }
    assert status["generation"]["blocks"] == {"direct": 0, "compiled": 0, "host": 0}


@pytest.mark.parametrize(("path", "on"), [("enable", True), ("disable", False)])
def test_switches_switch_and_answer_with_the_status(path: str, on: bool) -> None:
    switch = Switch()
    answer = client(switch).post(f"/accel/v1/{path}")
    assert (answer.status_code, switch.turned) == (200, [on])
    assert "summary" in answer.json()


@pytest.mark.parametrize("path", MUTATING)
def test_switches_are_absent_where_nothing_may_change(path: str) -> None:
    without = client(None)
    assert without.post(path).status_code == 404
    assert without.get("/accel/v1/status").status_code == 200


@pytest.mark.parametrize("path", MUTATING)
def test_switches_cannot_be_turned_by_a_link(path: str) -> None:
    switch = Switch()
    assert client(switch).get(path).status_code == 405
    assert switch.turned == []


@pytest.mark.parametrize("path", SWITCHES)
def test_a_refusal_is_told(path: str) -> None:
    answer = client(Switch("settings are frozen")).post(path)
    assert (answer.status_code, answer.json()["detail"]) == (403, "settings are frozen")


CREDENTIALS = {"ann": "secret", "bob": "pass:word"}


@pytest.mark.parametrize("auth", [("ann", "secret"), ("bob", "pass:word")])
def test_the_right_password_is_let_in(auth: Any) -> None:
    assert client(Switch(), CREDENTIALS).get("/accel/v1/status", auth=auth).status_code == 200


@pytest.mark.parametrize(
    "auth", [None, ("ann", ""), ("ann", "wrong"), ("ann", "pass:word"), ("eve", "secret"), ("", "")]
)
@pytest.mark.parametrize(
    "path",
    [
        *(("GET", path) for path in TELLING),
        *(("POST", path) for path in MUTATING),
        ("DELETE", "/accel/v1/cache"),
    ],
)
def test_anything_else_is_kept_out_of_every_route(auth: Any, path: tuple[str, str]) -> None:
    switch = Switch()
    answer = client(switch, CREDENTIALS).request(*path, auth=auth)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic")
    assert switch.turned == []


@pytest.mark.parametrize(
    ("text", "credentials"),
    [
        (None, {}),
        ("", {}),
        ("ann:secret", {"ann": "secret"}),
        ("ann:secret,bob:pass:word", {"ann": "secret", "bob": "pass:word"}),
    ],
)
def test_credentials_are_read_as_the_webui_reads_them(text: str | None, credentials: dict[str, str]) -> None:
    assert parse_credentials(text) == credentials


# The summary, of a live engine


@pytest.fixture
def host() -> FakeHost:
    host = FakeHost()
    host.live = [("UNet", tiny_unet())]
    return host


def summary_after_a_picture(host: FakeHost) -> str:
    with attached(host) as engine:
        run(host.live[0][1], inputs())
        return engine.report().summary


def test_summary_says_that_all_is_fast(host: FakeHost) -> None:
    fast = summary_after_a_picture(host)
    assert fast.startswith("UNet: ")
    assert fast.endswith(" blocks fast")
    assert "because" not in fast


def test_summary_says_that_it_is_off(host: FakeHost) -> None:
    with host.switched_off():
        assert summary_after_a_picture(host) == "off"


def test_summary_of_a_detached_engine_is_off(host: FakeHost) -> None:
    assert Engine(host).report().summary == "off"


def test_summary_says_why_we_stand_aside(host: FakeHost) -> None:
    host.stand_aside = ["weights are stored in fp8"]
    assert summary_after_a_picture(host) == "standing aside: weights are stored in fp8"


def test_summary_says_what_keeps_part_of_it_slow(host: FakeHost) -> None:
    host.attention = ["HyperTile is on"]
    part = summary_after_a_picture(host)
    assert "of the last picture's blocks fast" in part
    assert part.endswith("mostly because: HyperTile is on")


def test_summary_waits_for_a_model() -> None:
    with attached() as engine:
        assert engine.report().summary == "waiting for a model"


def test_prefetch_says_what_it_found() -> None:
    answer = client(Switch()).post(PREFETCH, json={"names": ["a", "unknown", "b"]})
    assert (answer.status_code, answer.json()) == (200, {"found": ["a", "b"], "unknown": ["unknown"]})


@pytest.mark.parametrize("body", [None, {}, {"names": "a"}, {"names": [{}]}])
def test_prefetch_of_anything_else_is_refused(body: Any) -> None:
    assert client(Switch()).post(PREFETCH, json=body).status_code == 422


# Tasks


def test_status_has_every_value_of_the_report(operations: FakeOperations) -> None:
    operations.host.live = [("UNet", tiny_unet())]
    operations.networks.loaded = [("style", 0.8, 1.0)]
    operations.pictures.add(PICTURE)
    operations.painter.on_draw = lambda: run(operations.host.live[0][1], inputs())
    with attached(operations.host) as engine:
        operations._engine = engine
        operations.benchmark(Wanted(width=64, height=64))
    told, sent = operations.status(), client().get("/accel/v1/status").json()
    assert sent == {**told, "models": told["models"], "benchmark": {**told["benchmark"]}}


def test_the_report_is_text_for_those_who_may_change_something() -> None:
    assert "program: a fake" in client(Switch()).get("/accel/v1/report").json()["text"]
    assert client().get("/accel/v1/report").status_code == 404


def test_a_warm_up_answers_when_it_is_done(operations: FakeOperations) -> None:
    with attached(operations.host) as engine:
        operations._engine = engine
        answer = client(Switch()).post("/accel/v1/warmup", json={"width": 128, "batch_size": 2})
    assert (answer.status_code, answer.json()["pictures"]) == (200, 1)
    assert operations.painter.wanted == [Wanted(width=128, height=512, batch_size=2)]


def test_a_benchmark_answers_with_its_figures(operations: FakeOperations) -> None:
    unet = tiny_unet()
    operations.painter.on_draw = lambda: run(unet, inputs())
    with attached(operations.host) as engine:
        operations._engine = engine
        answer = client(Switch()).post("/accel/v1/benchmark", json={"width": 64, "height": 64, "steps": 6})
    assert (answer.status_code, [row["loras"] for row in answer.json()["rows"]]) == (200, [0, 1, 4])
    assert operations.painter.wanted[0] == Wanted(width=64, height=64, steps=6)


def test_what_cannot_be_done_now_is_told() -> None:
    answer = client(Switch()).post("/accel/v1/warmup", json={})
    assert (answer.status_code, answer.json()["detail"]) == (
        409,
        "acceleration is off: turn it on in Settings, Accel; or it is off until the restart",
    )


def test_an_interrupted_task_is_told(operations: FakeOperations) -> None:
    operations.painter.interrupt_at = 0
    with attached(operations.host) as engine:
        operations._engine = engine
        answer = client(Switch()).post("/accel/v1/benchmark", json={})
    assert (answer.status_code, answer.json()["detail"]) == (409, "interrupted by a test")


@pytest.mark.parametrize("path", TASKS)
@pytest.mark.parametrize("body", [{"width": 63}, {"height": 2056}, {"width": 100}, {"width": "wide"}, []])
def test_sizes_out_of_range_are_refused(path: str, body: Any) -> None:
    assert client(Switch()).post(path, json=body).status_code == 422


def test_nothing_to_cancel_is_no_error() -> None:
    assert client(Switch()).post("/accel/v1/cancel").json() == {"cancelled": False}
