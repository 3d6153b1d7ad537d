"""What libraries log and Python warns of, as JSON lines of ours: a log that is read by a program has no line of another kind."""

from __future__ import annotations

import logging

import structlog

log = structlog.get_logger()


class LibraryLines(logging.Handler):
    """A record of ``logging`` as a line of ``structlog``."""

    def emit(self, record: logging.LogRecord) -> None:
        say = log.error if record.levelno >= logging.ERROR else log.warning
        say("library_log", logger=record.name, message=record.getMessage().strip(), exc_info=record.exc_info)


def take_library_logs() -> None:
    """From now on, what goes to ``logging`` or ``warnings`` from "warning" up becomes a line ``library_log`` of ``structlog``.

    Without it Python writes such a message as bare text to standard error, in between (asyncio: "socket.send() raised exception.").
    """
    root = logging.getLogger()
    if not any(isinstance(handler, LibraryLines) for handler in root.handlers):
        root.addHandler(LibraryLines(logging.WARNING))
    logging.captureWarnings(True)
    # a failure of the application is an error there; a request that is none is a warning, and not worth a line
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
