"""Ports for servers and launchers that tests start."""

import socket


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has right now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
