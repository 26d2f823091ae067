"""A real MLflow server on 127.0.0.1, in a thread, that can be stopped and made to fail in the ways that servers do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse

import pytest
from werkzeug.serving import BaseWSGIServer, make_server

from tests.helpers.processes.ports import free_port

MODES = ("stopped", "hang", "500", "404", "lost")
"""stopped: connections are refused; hang: they are accepted and nothing comes; 404: as from a proxy before a server
that is down; lost: the server does what it is asked, but the answer does not arrive."""


class FaultyMlflow:
    """`mode` is one of MODES or 'ok', and may be set at any time."""

    def __init__(self, store: str, artifacts: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", "true")
            from mlflow.server import app, handlers

            handlers._tracking_store = None
            handlers._get_tracking_store(store, str(artifacts))
        self._app: Callable[..., Iterable[bytes]] = app
        self._port = free_port()
        self._server: BaseWSGIServer | None = None
        self._mode = "ok"
        self._changed = threading.Event()
        self._start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def set(self, mode: str) -> None:
        assert mode in (*MODES, "ok")
        before, self._mode = self._mode, mode
        self._changed.set()  # hanging requests end
        self._changed = threading.Event()
        if mode == "stopped":
            self._stop()
        elif before == "stopped":
            self._start()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        mode = self._mode
        if mode == "ok":
            return self._app(environ, start_response)
        if mode == "hang":
            self._changed.wait(60)
        elif mode == "lost":
            list(self._app(environ, lambda *_: lambda data: None))
        start_response(
            "404 Not Found" if mode == "404" else "500 Internal Server Error", [("Content-Type", "text/html")]
        )
        return [b"<html>default backend</html>"]

    def close(self) -> None:
        self._changed.set()
        self._mode = "500"
        self._stop()

    def _start(self) -> None:
        self._server = make_server("127.0.0.1", self._port, self, threaded=True)
        self._server.daemon_threads = True  # type: ignore[attr-defined]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
