"""Serves a place on this machine until Ctrl-C."""

import os
import socket
import sys
import webbrowser
from typing import Any

import uvicorn

from stillhouse.pipeline.console import message
from stillhouse.pipeline.look.place import open_place
from stillhouse.pipeline.look.view.app import View
from stillhouse.pipeline.look.view.guard import Guard
from stillhouse.schemas.config import ConfigError

PORT = 8427
"""Where it listens if nobody else does, so that addresses that were shared stay the same."""


def serve(path: str, port: int | None, tokenizer: str | None, *, may_open_browser: bool) -> dict[str, Any]:
    """Serves `path` on 127.0.0.1 until SIGINT or SIGTERM, and returns {"path", "url"} (without the token). Raises
    `ConfigError` where there is nothing to view or `port` is taken; without a port, another one is found."""
    view = View(open_place(path), tokenizer)
    with _listening(port) as listener:
        number = listener.getsockname()[1]
        guard = Guard(view.app(), number)
        url = f"http://127.0.0.1:{number}/"
        address = f"{url}?token={guard.token}"
        for note in view.place.notes:
            message(f"note: {note}")
        message(f"{path} ({view.place.kind}): {', '.join(view.files)}")
        message(f"open in a browser on this machine (Ctrl-C ends it):\n  {address}")
        if may_open_browser and _is_desktop():
            webbrowser.open(address)
        # No access log: addresses hold what was searched for, which may be somebody's words.
        config = uvicorn.Config(guard, log_level="warning", access_log=False, server_header=False, ws="none")
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn ends in order, then raises the signal again
            message("ended")
    return {"path": path, "url": url}


def _listening(port: int | None) -> socket.socket:
    for number in (PORT, 0) if port is None else (port,):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", number))
        except (OSError, OverflowError) as error:
            listener.close()
            if port is not None:
                raise ConfigError(f"--port {port}: cannot be listened on ({error.args[-1]}); choose another") from None
            continue
        listener.listen()
        return listener
    raise ConfigError("--port: no port is free on 127.0.0.1")


def _is_desktop() -> bool:
    """Whether somebody sits at this machine: a terminal, and a screen that the browser can use."""
    has_screen = sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    return sys.stderr.isatty() and has_screen and "SSH_CONNECTION" not in os.environ
