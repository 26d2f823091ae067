"""What is wrong with an input of the page, and beside which field it is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FIELDS = ("prompt", "places", "lines", "imitation", "settings", "result")
"""The fields of the page that have a line for messages."""


@dataclass(frozen=True)
class Message:
    """A line for a user. field: one of FIELDS. key: of the texts; arguments: what is filled in.

    text: of a message that the texts do not have; it is shown as it is.
    """

    field: str
    key: str
    arguments: tuple[Any, ...] = ()
    text: str = ""


class PageFault(ValueError):
    """An input that cannot be drawn."""

    def __init__(self, field: str, key: str, *arguments: Any, text: str = "") -> None:
        super().__init__(text or " ".join([key, *map(str, arguments)]))
        self.message = Message(field, key, arguments, text)
