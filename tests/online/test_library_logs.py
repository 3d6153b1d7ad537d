"""What a library says reaches the log as JSON lines, in a process that logs as the servers do."""

from __future__ import annotations

import subprocess
import sys

import msgspec

SAYS = """
import logging, warnings
from headwater.cli.options import configure_logging
configure_logging("info")
configure_logging("info")
logging.getLogger("asyncio").warning("socket.send() raised %s.", "exception")
warnings.warn("a library\\nwarns", RuntimeWarning)
logging.getLogger("httpx").info("not worth a line")
logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("uvicorn.error").exception("Exception in ASGI application\\n")
"""


def test_what_libraries_say_is_json_said_once() -> None:
    done = subprocess.run([sys.executable, "-c", SAYS], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    sent, warned, failed = (msgspec.json.decode(line) for line in done.stderr.splitlines())
    assert {line["event"] for line in (sent, warned, failed)} == {"library_log"}
    assert (sent["logger"], sent["level"], sent["message"]) == ("asyncio", "warning", "socket.send() raised exception.")
    assert warned["logger"] == "py.warnings"
    assert "RuntimeWarning: a library\nwarns" in warned["message"]
    assert (failed["level"], failed["message"]) == ("error", "Exception in ASGI application")
    assert failed["exception"][0]["exc_type"] == "ZeroDivisionError"
