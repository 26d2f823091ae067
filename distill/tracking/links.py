"""The page of a run in MLflow's web interface, and the command that serves it where the store is a local file."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

LOCAL_SERVER = "http://127.0.0.1:5000"
"""Where `mlflow ui` listens unless it is told otherwise."""


def run_page(uri: str, experiment_id: str, run_id: str) -> str:
    """The address of a run's curves; '' where the store is neither a server nor SQLite, or knows no such run.

    viewStateShareKey: the layout that page_view.py has stored. workflowType: without it MLflow 3 opens an experiment in
    its view for language models, which has no curves.
    """
    server = uri.rstrip("/") if uri.startswith(("http://", "https://")) else LOCAL_SERVER
    if not (experiment_id and run_id) or not (server != LOCAL_SERVER or uri.startswith("sqlite:")):
        return ""
    view = f"viewStateShareKey={run_id}&compareRunsMode=CHART&workflowType=machine_learning"
    return f"{server}/#/experiments/{experiment_id}/runs?{view}"


def server_command(uri: str) -> str:
    """The shell command that serves an SQLite store at `LOCAL_SERVER`; '' for any other."""
    if not uri.startswith("sqlite:"):
        return ""
    mlflow = Path(sys.executable).with_name("mlflow")
    return shlex.join([str(mlflow), "ui", "--backend-store-uri", uri, "--host", "127.0.0.1"])
