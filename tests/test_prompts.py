"""Prompts of requests are seen while these arrive, and the requests are left as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from lib_accel.api.prompts import PromptWatch

PROMPT = '{"prompt": "a cat <lora:style:0.5>"}'


def _sent(
    scope: dict[str, Any], messages: Iterable[dict[str, Any]]
) -> tuple[list[str], list[dict[str, Any]]]:
    """What was told, and what the application behind the watch received."""
    told: list[str] = []
    received: list[dict[str, Any]] = []
    waiting = list(messages)

    async def receive() -> dict[str, Any]:
        return waiting.pop(0)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        received.extend([await receive() for _ in list(waiting)])

    asyncio.run(PromptWatch(application, told.append)(scope, receive, None))
    return told, received


def _body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


POST = {"type": "http", "method": "POST"}


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        (POST, _body(PROMPT.encode())),
        ({"type": "websocket"}, {"type": "websocket.receive", "text": PROMPT}),
        ({"type": "websocket"}, {"type": "websocket.receive", "bytes": PROMPT.encode(), "text": None}),
    ],
)
def test_a_prompt_is_told_and_passed_on(scope: dict[str, Any], message: dict[str, Any]) -> None:
    assert _sent(scope, [message]) == ([PROMPT], [message])


def test_a_prompt_that_comes_in_pieces_is_told_whole() -> None:
    data = PROMPT.encode()
    messages = [_body(data[:25], more=True), _body(data[25:])]
    told, received = _sent(POST, messages)
    assert told[-1] == PROMPT
    assert received == messages


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        (POST, _body(b'{"prompt": "a cat"}')),
        (POST, _body(b"\xff\xfe")),
        (POST, {"type": "http.disconnect"}),
        ({"type": "http", "method": "GET"}, _body(PROMPT.encode())),
    ],
)
def test_anything_else_is_passed_on_untold(scope: dict[str, Any], message: dict[str, Any]) -> None:
    assert _sent(scope, [message]) == ([], [message])


def test_startup_passes_through() -> None:
    message = {"type": "lifespan.startup"}
    assert _sent({"type": "lifespan"}, [message]) == ([], [message])
