"""A configuration as it was when a server took it up, so that an edited file changes nothing before the flip.

Processes die and are started again while somebody edits the file; they must come back with the plan that the others
serve. So they read a copy: the configuration as it was understood, and the feature module that it names.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError

if TYPE_CHECKING:
    from headwater.features.plan import Plan

PINNED = "config.json"
_RULES = "rules.json"
_MODULE = "features.py"


def config_digest(config: Config) -> str:
    """SHA-256 over the configuration and the bytes of the feature module it names: what decides on the plan, and all else."""
    digest = hashlib.sha256(msgspec.json.encode(config))
    if (module := _module(config)) is not None:
        digest.update(module)
    return digest.hexdigest()


def pin_config(config: Config, run: Path) -> Path:
    """Copy ``config`` (and its feature module) to a folder of its own below ``run``; returns the copy's path.

    Raises:
        ConfigurationError: the feature module cannot be read.
    """
    folder = run / f"config-{config_digest(config)[:16]}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (module := _module(config)) is not None:
        (folder / _MODULE).write_bytes(module)
        config = _with_module(config, str((folder / _MODULE).absolute()))
    (folder / _RULES).unlink(missing_ok=True)  # of an earlier server: those of `config` are in force
    (folder / PINNED).write_bytes(msgspec.json.encode(config))
    return folder / PINNED


def load_pinned(path: Path) -> Config:
    """The configuration that :func:`pin_config` copied to ``path``."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Config)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}. Start the server again") from error


def rules_beside(pinned: Path) -> Path:
    """Where rules lie that were taken up after ``pinned`` was written; absent: those in it are in force."""
    return pinned.with_name(_RULES)


def drop_pinned(run: Path, keep: Path) -> None:
    """Remove all copies below ``run`` but the one at ``keep``."""
    for folder in run.glob("config-*"):
        if folder != keep.parent:
            shutil.rmtree(folder)


def expected_plan(config: Config, expected: str | None) -> Plan:
    """The plan of ``config``, which must be the one with the hash ``expected`` (None: whichever it is).

    Raises:
        ConfigurationError: it is another one; both are named.
    """
    from headwater.features.plan import compile_plan  # the supervisor pins, and has no use for numba

    plan = compile_plan(config)
    if expected is not None and plan.hash != expected:
        raise ConfigurationError(
            f"The configuration compiles to plan {plan.hash}, expected was {expected}: it, its feature module or the "
            "program was changed since. Run `headwater features backfill` again, or start the server again"
        )
    return plan


def _module(config: Config) -> bytes | None:
    path = config.features.module
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"features.module: {path}: {error.strerror}") from error


def _with_module(config: Config, path: str) -> Config:
    return msgspec.structs.replace(config, features=msgspec.structs.replace(config.features, module=path))
