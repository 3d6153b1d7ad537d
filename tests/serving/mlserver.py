"""MLServer, installed on first use in a folder of its own: its pins (protobuf) are older than ours, so it shares no environment with us."""

from __future__ import annotations

import fcntl
import functools
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "1.7.1"
INSTALL_S = 300


@functools.cache
def mlserver_path() -> Path:
    """The folder to put in front of ``sys.path`` of the process that runs MLServer. Takes some 20 seconds the first time.

    Raises:
        RuntimeError: it cannot be installed; the message is pip's.
    """
    folder = (
        Path(tempfile.gettempdir()) / f"headwater-mlserver-{VERSION}-{sys.version_info.major}.{sys.version_info.minor}"
    )
    done = folder / ".installed"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not done.exists():
            _pip("install", "--target", str(folder), "--upgrade", "--no-compile", f"mlserver=={VERSION}")
            done.touch()
    return folder


def _pip(*arguments: str) -> None:
    """pip of this environment, or, in one that has none, of the interpreter that made it."""
    own = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0
    python = sys.executable if own else sys._base_executable  # type: ignore[attr-defined]
    ran = subprocess.run(
        [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments],
        timeout=INSTALL_S, stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip
    if ran.returncode != 0:
        raise RuntimeError(f"MLServer {VERSION} cannot be installed:\n{ran.stderr.decode(errors='replace')}")
