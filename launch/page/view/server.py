"""Serves the page on 127.0.0.1: nothing that it shows or does needs another address."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.middleware.trustedhost import TrustedHostMiddleware

from launch.page.limits import UPLOAD_MEGABYTES
from launch.page.render import RESULTS_URL
from launch.page.view.callbacks import UPLOADS_URL
from launch.page.view.components import asset, page_theme

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio compiles its templates in the browser
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'self'",
    )
)
"""What a browser may load: whatever a dependency links to elsewhere is not asked for."""

_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}

Scope = Mapping[str, Any]


class SecurityHeaders:
    """Adds headers to each answer; streams pass through it as they are."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def make_app(blocks: gr.Blocks, folder: Path, host: str) -> FastAPI:
    """The page and the pictures it shows. folder: of the page's files. host: the only address it answers at."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(SecurityHeaders)
    # A foreign page could otherwise reach this one by a name of its own that points to 127.0.0.1.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[host, "localhost"])
    app.mount(RESULTS_URL, StaticFiles(directory=folder / "results"))
    app.mount(UPLOADS_URL, StaticFiles(directory=folder / "uploads"))
    return gr.mount_gradio_app(
        app,
        blocks,
        path="",
        server_name=host,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=f"{UPLOAD_MEGABYTES}mb",
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=page_theme(),
        css=asset("page.css"),
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )


def serve(app: FastAPI, place: socket.socket) -> None:
    """Answers until Ctrl-C."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=1, server_header=False
    )
    uvicorn.Server(config).run(sockets=[place])
