"""What tests of tracking share."""

from __future__ import annotations

from distill.tracking.uploader import Timing

FAST = Timing(send=0.05, system=0.0, connect=30.0, request=1)
DEAD_SERVER = "http://127.0.0.1:9"
"""The discard port: a connection is refused at once."""
