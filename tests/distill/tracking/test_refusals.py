"""An MLflow that refuses for good is told apart from an outage at once, with what to do; records stay local."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill.tracking.refusals import RefusedError, refusal
from distill.tracking.tracker import Tracker
from tests.helpers.run_records import read_metrics
from tests.helpers.tracking import DEAD_SERVER, FAST


class Coded(Exception):
    """An error with MLflow's code."""

    def __init__(self, text: str, error_code: str = "INTERNAL_ERROR") -> None:
        super().__init__(text)
        self.error_code = error_code


def http(status: int) -> Coded:
    code = {400: "BAD_REQUEST", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED"}.get(status, "INTERNAL_ERROR")
    return Coded(f"API request to endpoint /api/x failed with error code {status} != 200. Response body: ''", code)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RefusedError("its experiment 'x' is deleted"), "its experiment 'x' is deleted"),
        (http(401), "MLFLOW_TRACKING_USERNAME"),
        (http(403), "MLFLOW_TRACKING_TOKEN"),
        (http(407), "no permission"),
        (Coded("Permission denied", "PERMISSION_DENIED"), "no permission"),
        (Coded("got unsupported URI 'htp://x'", "INVALID_PARAMETER_VALUE"), "tracking.uri must begin with http://"),
        (Coded("Invalid url: http://localhost:port/api"), "tracking.uri must begin with http://"),
        (Coded("The filesystem tracking backend is in maintenance mode"), "sqlite:///"),
        (ModuleNotFoundError("No module named 'psycopg'"), "install it"),
        (Exception("(sqlite3.DatabaseError) file is not a database"), "no SQLite database"),
        (Exception("(sqlite3.OperationalError) attempt to write a readonly database"), "cannot be written"),
        (Coded("Detected out-of-date database schema (found version a)"), "mlflow db upgrade"),
        (Coded("Max retries exceeded (Caused by SSLError(1))"), "http:// or https://"),
    ],
)
def test_what_is_always_a_refusal(error: Exception, words: str) -> None:
    for reached in (False, True):
        assert words in refusal(error, reached) and "\n" not in refusal(error, reached)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (http(404), "(HTTP 404) is no MLflow"),
        (http(405), "(HTTP 405) is no MLflow"),
        (http(301), "(HTTP 301) is no MLflow"),
        (http(400), "is no MLflow"),
        (Coded("was successful but the response body was not in a valid JSON format"), "is no MLflow"),
        (Coded("INTERNAL_ERROR: Response: {'detail': 'Not Found'}"), "is no MLflow"),
        (Coded("Max retries exceeded (Caused by NameResolutionError('x'))"), "name of its host is not known"),
        (Coded("Invalid experiment name", "INVALID_PARAMETER_VALUE"), "tracking.experiment"),
    ],
)
def test_what_is_a_refusal_until_mlflow_has_answered_there_once(error: Exception, words: str) -> None:
    assert words in refusal(error, reached=False)
    assert refusal(error, reached=True) == ""


@pytest.mark.parametrize(
    "error",
    [
        http(500),
        http(503),
        Coded("Max retries exceeded (Caused by NewConnectionError('Connection refused'))"),
        Coded("Max retries exceeded (Caused by ResponseError('too many 503 error responses'))"),
        Coded("failed with timeout exception", "INTERNAL_ERROR"),
        Exception("(sqlite3.OperationalError) database is locked"),
        ConnectionError("no route to host"),
    ],
)
def test_what_may_pass_is_an_outage(error: Exception) -> None:
    assert refusal(error, reached=False) == ""


# --- against what really answers ---


class Answer(BaseHTTPRequestHandler):
    """A server that is no MLflow: one answer to everything."""

    status, body = 404, b"<html>not found</html>"

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def other_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def track(run_dir: Path, uri: str, experiment: str = "e") -> list[str]:
    """What a short run says whose MLflow refuses it; its records are in its folder."""
    said: list[str] = []
    began = time.monotonic()
    options = SimpleNamespace(enabled=True, uri=uri, experiment=experiment)
    tracker = Tracker(run_dir, options, {"lr": 1}, say=said.append, timing=FAST)
    tracker.log({"train/loss": 1.0}, 1)
    report = tracker.finish("FINISHED", timeout=20)
    assert time.monotonic() - began < 20 and report.unsent == 4
    assert [record["train/loss"] for record in read_metrics(run_dir)] == [1.0]
    return said


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, b"<html>not found</html>", "(HTTP 404) is no MLflow; check host, port and path of tracking.uri"),
        (200, b"<html>login</html>", "is no MLflow"),
        (200, b"{}", "is no MLflow"),
        (403, b"", "no permission"),
    ],
)
def test_a_wrong_address_is_said_once_with_the_remedy(
    tmp_path: Path, other_server: str, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, words: str
) -> None:
    monkeypatch.setattr(Answer, "status", status)
    monkeypatch.setattr(Answer, "body", body)
    first, last = track(tmp_path / "run", other_server)
    assert f"MLflow ({other_server}) cannot be used: " in first and words in first and "does not answer" not in first
    assert "4 records did not reach MLflow" in last and "with --uri or --experiment" in last


def test_an_address_of_no_known_kind(tmp_path: Path) -> None:
    first, _ = track(tmp_path / "run", "localhost:5000")
    assert "cannot be used: tracking.uri must begin with http://, https:// or sqlite:///" in first


def test_a_deleted_experiment_names_the_command_that_restores_it(run_dir: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run_dir.parent / 'mlflow.db'}")
    number = client.create_experiment("gone")
    client.delete_experiment(number)
    first, _ = track(run_dir, "", "gone")
    assert f"`mlflow experiments restore --experiment-id {number}`" in first and "tracking.experiment" in first
    client.restore_experiment(number)
    tracker = Tracker(run_dir, SimpleNamespace(enabled=True, uri="", experiment="gone"), {}, timing=FAST)
    assert tracker.finish().unsent == 0  # the run goes on, with all that waited


def test_an_outage_before_a_refusal_does_not_hide_it(tmp_path: Path, other_server: str) -> None:
    said: list[str] = []
    options = SimpleNamespace(enabled=True, uri=DEAD_SERVER, experiment="e")
    tracker = Tracker(tmp_path / "run", options, {}, say=said.append, timing=FAST)
    assert "does not answer" in said[0]
    uploader = tracker._uploader
    assert uploader is not None
    uploader._uri, uploader._next_try = other_server, 0.0  # another program starts there
    tracker.finish()
    assert "is no MLflow" in said[1]
