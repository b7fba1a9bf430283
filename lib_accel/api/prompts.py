"""Sees the prompts of requests while they arrive, before they wait for their turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Application = Callable[[Any, Receive, Any], Awaitable[None]]

_MARK = b"<lora:"
_LONGEST = 512  # bytes that a name may be cut by, where a body comes in pieces


class PromptWatch:
    """ASGI middleware that shows what looks like a prompt with LoRAs to `tell`; it changes nothing.

    Bodies of POST requests, as of /sdapi/v1/txt2img, and messages of WebSockets, as of the page.
    """

    def __init__(self, app: Application, tell: Callable[[str], None]) -> None:
        self._app, self._tell = app, tell

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        """Passes on."""
        if scope["type"] == "websocket" or scope.get("method") == "POST":
            await self._app(scope, self._watched(receive), send)
        else:
            await self._app(scope, receive, send)

    def _watched(self, receive: Receive) -> Receive:
        before = b""

        async def watched() -> Message:
            nonlocal before
            message = await receive()
            data = before + _data(message)
            if _MARK in data:
                self._tell(data.decode("utf-8", "replace"))
            before = data[-_LONGEST:]
            return message

        return watched


def _data(message: Message) -> bytes:
    text = message.get("text")
    return text.encode() if text else message.get("body") or message.get("bytes") or b""
