"""Work in a process of its own, for it may die of what it reads."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

import msgspec

T = TypeVar("T")

TIMEOUT_S = 60


class Died(StrEnum):
    """How the process ended that gave no answer."""

    CRASHED = "crashed"
    HUNG = "hung"


def apart(work: Callable[[], T], kind: type[T]) -> T | Died:
    """The result of ``work``, of type ``kind``, done in a fork of this process. An exception counts as a crash."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(receiving)
            faulthandler.disable()  # a crash is an outcome here
            signal.alarm(TIMEOUT_S)
            with os.fdopen(sending, "wb") as file:
                file.write(msgspec.json.encode(work()))
            code = 0
        finally:
            os._exit(code)
    os.close(sending)
    with os.fdopen(receiving, "rb") as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        return Died.HUNG
    if status != 0 or not said:
        return Died.CRASHED
    return msgspec.json.decode(said, type=kind)
