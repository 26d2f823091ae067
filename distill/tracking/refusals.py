"""Tells an MLflow that refuses for good from one that does not answer for a while, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from distill.tracking.journal import one_line

_STATUS = re.compile(r"failed with error code (\d+) != 200")
_NO_PERMISSION = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
_BAD_URI = (
    "unsupported URI",
    "Invalid url",
    "No host supplied",
    "filesystem tracking",
    "Can't load plugin",
    "not parse",
)
_NOT_VALID = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


class RefusedError(RuntimeError):
    """MLflow answers, and the same call would fail again. The message is one line with the remedy."""


def refusal(error: Exception, reached: bool) -> str:
    """Why MLflow refuses for good, and what to do, in one line; '' for an outage, which may pass.

    reached: whether MLflow has answered at this address before. Then an answer that is not MLflow's comes from a proxy
    in front of a server that is down.
    """
    text, code = one_line(error), getattr(error, "error_code", "")
    if isinstance(error, RefusedError):
        return text
    if isinstance(error, ImportError):
        return f"a package that this kind of store needs is missing ({text}); install it, or set another tracking.uri"
    for applies, remedy in _ALWAYS:
        if applies(error, code, text):
            return f"{remedy} ({text})"
    if reached:
        return ""
    status = _STATUS.search(text)
    if (
        (status and 300 <= int(status[1]) < 500)
        or "not in a valid JSON format" in text
        or "_ERROR: Response: {" in text
    ):
        answer = f"HTTP {status[1]}" if status else "not MLflow's words"
        return f"what answers there ({answer}) is no MLflow; check host, port and path of tracking.uri"
    if "NameResolutionError" in text:
        return "the name of its host is not known; check tracking.uri"
    return f"it refuses the run; check tracking.uri and tracking.experiment ({text})" if code in _NOT_VALID else ""


def _is_no_permission(error: Exception, code: str, text: str) -> bool:
    status = _STATUS.search(text)
    return code in _NO_PERMISSION or bool(status and status[1] in ("401", "403", "407"))


def _says(*words: str) -> Callable[[Any, str, str], bool]:
    return lambda error, code, text: any(word in text for word in words)


_ALWAYS: tuple[tuple[Callable[[Exception, str, str], bool], str], ...] = (
    (
        _is_no_permission,
        "no permission: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, or check "
        "tracking.uri, as another program may answer there",
    ),
    (_says(*_BAD_URI), "tracking.uri must begin with http://, https:// or sqlite:///"),
    (
        _says("SSLError"),
        "no secure connection: check http:// or https:// of tracking.uri, and the server's certificate",
    ),
    (
        _says("file is not a database"),
        "the file is no SQLite database: set another tracking.uri, or move the file away",
    ),
    (_says("unable to open database file", "readonly database"), "the database file cannot be written: check its path"),
    (_says("out-of-date database schema"), "the database is of an older MLflow: `mlflow db upgrade` converts it"),
)
