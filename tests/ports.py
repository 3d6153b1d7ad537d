"""Ports for programs of tests that must be told one."""

from __future__ import annotations

import itertools
import os
import socket

_LEAST, _COUNT = 10_000, 10_000  # below those that the kernel hands out: nobody gets one of them by chance
_next = itertools.count(os.getpid() * 97)  # tests that run at the same time begin elsewhere


def free_port(beside: int = 0) -> int:
    """A port of this machine that nobody listens on, nor on the one ``beside`` above it; never the same twice."""
    while True:
        port = _LEAST + next(_next) % _COUNT
        try:
            for one in {port, port + beside}:
                socket.create_server(("127.0.0.1", one)).close()
        except OSError:  # it is taken
            continue
        return port
