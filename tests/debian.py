"""Programs that tests need and Python's packages do not bring: found, or installed from Debian on a fresh machine."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

INSTALL_S = 240


@functools.cache
def program(name: str, package: str) -> str:
    """The path of ``name``; where it is absent, ``package`` is installed, which takes root.

    Raises:
        RuntimeError: it is not there and cannot be installed; the message says what to do.
    """
    found = shutil.which(name)
    if found is not None:
        return found
    hint = f"this test needs {name}; install it (Debian: apt-get install {package})"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise RuntimeError(f"{hint}, or run the tests as root on Debian, where they install it themselves")
    with (Path(tempfile.gettempdir()) / "headwater-tests-install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes, and Debian installs one thing at a time
        found = shutil.which(name)
        if found is not None:
            return found
        try:
            _run("apt-get", "update", "-qq")
            _run("apt-get", "install", "-y", "-qq", "--no-install-recommends", package)
        except RuntimeError as error:
            raise RuntimeError(f"{hint}. {error}") from error
        found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"{hint}: {package} was installed and {name} is not on the PATH")
    return found


@functools.cache
def _run(*command: str) -> None:
    # RUNLEVEL: a package shall not start a service of its own
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    done = subprocess.run(
        command, env=environment, timeout=INSTALL_S, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join(command)}` failed:\n{done.stderr.decode(errors='replace')}")
