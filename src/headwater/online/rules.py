"""Rules that change while requests go on: the supervisor reads and checks them, the workers follow what it accepted."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace

from headwater.features.pinned import load_pinned, rules_beside
from headwater.features.plan import Plan, compile_plan
from headwater.log.protocol import Vocabulary
from headwater.online.explain import Explaining
from headwater.online.metrics import Metrics
from headwater.online.recommender import Recommender
from headwater.online.roles import Role, home
from headwater.online.supervisor import serving_process
from headwater.policy.lint import Finding, lint
from headwater.registry.files import Stamp, read_regular, replace_file, stamp
from headwater.schema.clock import wall_ms
from headwater.schema.config import Config, load_config
from headwater.schema.errors import ConfigurationError, HeadwaterError, UnavailableError
from headwater.schema.rules import Rule, rules_version
from headwater.schema.surfaces import Shaping
from headwater.serving.rule_fields import rule_fields
from headwater.serving.rules import PLAIN_SHAPING, Rules, open_rules, shaping_of

log = structlog.get_logger()

POLL_S = 0.25
PATIENCE_S = 10.0
NO_RULES = "none"
MAX_FILE = 16 * 1024 * 1024


class Taken(Struct, frozen=True):
    """What was taken up: the rules, and how surfaces shape a ranked list, by name."""

    rules: tuple[Rule, ...]
    shaping: dict[str, Shaping]

    @property
    def version(self) -> str:
        """What names them."""
        return rules_version(self.rules, self.shaping)

    def within(self, config: Config) -> Config:
        """``config`` with these. Raises :class:`ConfigurationError` for a rule about a surface that it does not have."""
        surfaces = [surface.shaped(self.shaping.get(surface.name, PLAIN_SHAPING)) for surface in config.surfaces]
        return replace(config, rules=self.rules, surfaces=tuple(surfaces))


def taken(config: Config) -> Taken:
    """What ``config`` says itself."""
    return Taken(config.rules, shaping_of(config.surfaces))


_decode = msgspec.json.Decoder(Taken).decode


def check_rules(config: Config, plan: Plan, now_ms: int) -> list[Finding]:
    """The warnings of the linter about the rules of ``config``.

    Raises:
        ConfigurationError: it finds errors; the message names each.
    """
    surfaces = {surface.name: surface.k for surface in config.surfaces}
    _, findings = lint(config.rules, rule_fields(config, plan), surfaces, now_ms)
    if errors := [finding.message for finding in findings if finding.level == "error"]:
        raise ConfigurationError("\n".join(["rules: the linter finds errors", *(f"  {error}" for error in errors)]))
    return findings


def take_up_rules(config_path: Path | None, pinned: Path) -> str | None:
    """Read the rules, and how surfaces shape a list, in the file at ``config_path`` again, and have workers with the configuration ``pinned`` serve them.

    Returns their version. What is wrong with them is logged, and None returned: then those from before stay in force. Anything
    else that changed in the file waits for the next start.
    """
    try:
        fresh = taken(load_config(config_path))
        changed = fresh.within(load_pinned(pinned))
        warnings = check_rules(changed, compile_plan(changed), wall_ms())
        replace_file(rules_beside(pinned), msgspec.json.encode(fresh))
    except (HeadwaterError, OSError) as error:
        log.error("rules_refused", reason=str(error), hint="the rules from before stay in force")
        return None
    warned = [each.message for each in warnings]
    log.info("rules_accepted", version=fresh.version, rules=len(fresh.rules), warnings=warned)
    return fresh.version


def rules_in_force(config: Config, pinned: Path | None) -> Config:
    """``config`` with the rules that were taken up last (``pinned`` None: with its own).

    Raises:
        ConfigurationError: they cannot be read.
    """
    if pinned is None or not (path := rules_beside(pinned)).exists():
        return config
    try:
        return _decode(read_regular(path, MAX_FILE)).within(config)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(f"{path}: Cannot read the rules: {error}. Send SIGHUP to the server") from error


def publish(data: Path, version: str, patience_s: float = PATIENCE_S) -> str:
    """Have the server of ``data`` read its rules again; empty once it serves ``version``, else why it does not after ``patience_s``.

    Raises:
        UnavailableError: no server recommends from ``data``, or it is starting.
    """
    url = read_again(data)
    said = ""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        try:
            said = str(httpx.get(f"{url}/healthz", timeout=PATIENCE_S).json()["rules"])
        except (httpx.HTTPError, ValueError, KeyError):  # a worker that is being replaced
            said = ""
        if said == version:
            return ""
        time.sleep(POLL_S)
    serving = f"the server serves version {said or 'unknown'}"
    return f"{serving} and not {version}: it reads another configuration file, or its log says why"


def read_again(data: Path) -> str:
    """Tell the server of ``data`` to read its rules again; returns its address.

    Raises:
        UnavailableError: no server recommends from ``data``, or it is starting.
    """
    for role in (Role.ALL, Role.RECOMMEND):
        if (pid := serving_process(data, role)) is not None:
            break
    else:
        raise UnavailableError(f"No server recommends from {data}: the next one reads the rules at its start")
    try:
        url = (home(data, role) / "address").read_text().strip()
    except FileNotFoundError as error:
        raise UnavailableError(f"The server of {data} is still starting; try again when it answers") from error
    os.kill(pid, signal.SIGHUP)
    return url


class RulesWatch:
    """Hands ``recommender`` and ``explaining`` each set of rules that is taken up; it changes between two requests.

    ``pinned`` is the copy of the configuration that the worker was started with; None: there is nothing to follow.
    """

    def __init__(
        self, pinned: Path | None, config: Config, plan: Plan, vocabulary: Callable[[], Vocabulary],
        recommender: Recommender, metrics: Metrics, explaining: Explaining,
    ) -> None:  # fmt: skip
        self.version = taken(config).version
        self._pinned, self._config, self._plan = pinned, config, plan
        self._vocabulary = vocabulary
        self._recommender = recommender
        self._metrics, self._explaining = metrics, explaining
        self._seen: Stamp | None = None
        metrics.rules_in_force.labels(self.version or NO_RULES).set(1)

    def load(self) -> tuple[Config, Rules | None] | None:
        """The configuration with the rules that were taken up since the last call, and these compiled; None: there are none,
        or they were refused.
        """
        if self._pinned is None or (mark := stamp(rules_beside(self._pinned))) == self._seen:
            return None
        self._seen = mark  # taken before reading: a change in between is seen by the next call
        try:
            config = rules_in_force(self._config, self._pinned)
            rules = open_rules(config, self._plan, self._vocabulary())
        except HeadwaterError as error:
            log.error("rules_refused", reason=str(error), serving=self.version)
            return None
        if rules is not None:
            rules.warm_up()  # here, in the loading thread, so that no request waits for the kernel
        return config, rules

    def swap(self, config: Config, rules: Rules | None) -> None:
        """Serve with ``rules``, those of ``config``, from the next request on."""
        before, self.version = self.version, taken(config).version
        self._recommender.pipeline.rules = rules
        self._recommender.config = config
        self._explaining.config = config
        self._metrics.rules_in_force.labels(before or NO_RULES).set(0)
        self._metrics.rules_in_force.labels(self.version or NO_RULES).set(1)
        log.info("rules_in_service", version=self.version, before=before)

    async def run(self) -> None:
        """Follow the rules until cancelled; compiling happens in a thread, requests go on meanwhile."""
        while True:
            await asyncio.sleep(POLL_S)
            if self._pinned is None or stamp(rules_beside(self._pinned)) == self._seen:
                continue
            if (found := await asyncio.to_thread(self.load)) is not None:
                self.swap(*found)
