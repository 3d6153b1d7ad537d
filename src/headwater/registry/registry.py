"""The registry: bundles, which one is current for each feature plan, and the way back.

``bundles/<version>/`` are the bundles. ``plans/<plan hash>/CURRENT`` holds the version that servers of that plan
load, and ``HISTORY`` beside it the versions that were promoted, oldest first. Each of the two files is replaced in
one step; their order makes every instant between safe (see :meth:`Registry.put_in_service` and
:meth:`Registry.rollback`). ``gate/<version>.json`` is the gate's last report on a bundle: bundles never change. A release before this one kept one pair for all plans, directly in the registry: it is
read as that of the plan of its bundle, and moved by the next promotion or rollback.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import structlog
from msgspec import Struct

from headwater.registry.audit import AuditEntry, Author, record
from headwater.registry.bundle import (
    VERSION_PATTERN,
    Bundle,
    BundleError,
    Manifest,
    ManifestFields,
    load_bundle,
    read_manifest,
    write_bundle,
)
from headwater.registry.controls import read_controls
from headwater.registry.files import Stamp, read_regular, replace_file, stamp, sync_directory, writers_lock

_HISTORY = 200
_MOST_REPORT = 16 << 20
_CURRENT, _HISTORY_FILE = "CURRENT", "HISTORY"
_PLAN = re.compile(r"[A-Za-z0-9_\-]{1,128}")
Versions = list[str]
log = structlog.get_logger()


class Listed(Struct, frozen=True):
    """A line of :meth:`Registry.list`. ``current``: servers of its plan load it.

    ``problem`` says why the manifest cannot be used (it is ``None`` then).
    """

    version: str
    current: bool
    manifest: Manifest | None
    problem: str | None


class Registry:
    """A registry of bundles in a local directory, for one publisher at a time and any number of readers.

    Readers take no lock; they see the bundle before a change or the one after it, never a mixture.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bundles = path / "bundles"
        self._plans = path / "plans"

    @property
    def frozen(self) -> str:
        """Why no bundle is to be promoted, by the controls of the data directory that this is in; the empty text: it may be. A rollback always may.

        Raises:
            ConfigurationError: the controls cannot be read.
        """
        return read_controls(self.path.parent).promotion_frozen

    def list(self) -> list[Listed]:
        """Every bundle, newest first. The manifests are checked, the files they name are not."""
        if not self._bundles.is_dir():
            return []
        current = self._all_current()
        listed = []
        for version in sorted((p.name for p in self._bundles.iterdir() if not p.name.startswith(".")), reverse=True):
            manifest, problem = None, None
            try:
                manifest = read_manifest(self._bundles / version)
            except BundleError as error:
                problem = str(error)
            listed.append(Listed(version, version in current, manifest, problem))
        return listed

    def publish(self, fields: ManifestFields, files: Mapping[str, bytes]) -> Bundle:
        """Add a bundle and return it as read back from disk. It serves nobody until it is promoted.

        Raises:
            BundleError: a file that no bundle may hold (see :func:`write_bundle`).
        """
        self._bundles.mkdir(parents=True, exist_ok=True)
        with writers_lock(self.path / "LOCK"):
            for left in self._bundles.glob(
                ".incoming-*"
            ):  # what a killed publisher left: the lock is ours, nobody writes it
                shutil.rmtree(left)
            bundle = load_bundle(write_bundle(self._bundles, fields, files), plan_hash=fields.plan_hash)
        log.info("bundle_published", version=bundle.version, plan=fields.plan_hash, ranker=fields.ranker)
        return bundle

    def load(self, version: str, *, plan_hash: str | None) -> Bundle:
        """Read and check the bundle ``version``. Raises as :func:`load_bundle` does."""
        if not VERSION_PATTERN.fullmatch(version):
            raise BundleError(f"{version!r} is not a bundle version. Take one that the registry lists.")
        return load_bundle(self._bundles / version, plan_hash=plan_hash)

    def lineage(self, version: str) -> str:
        """The bundle with which the warm starts began that led to ``version``; itself when it was trained from nothing.

        Raises:
            BundleError: its manifest cannot be read.
        """
        return str(self.manifest(version).training.get("lineage", version))

    def manifest(self, version: str) -> Manifest:
        """The checked manifest of ``version``. Raises :class:`BundleError`."""
        if not VERSION_PATTERN.fullmatch(version):
            raise BundleError(f"{version!r} is not a bundle version. Take one that the registry lists.")
        return read_manifest(self._bundles / version)

    def current(self, plan_hash: str) -> str | None:
        """The version that servers of ``plan_hash`` load; ``None`` when none was promoted for it yet.

        Raises:
            BundleError: the file ``CURRENT`` holds something else.
        """
        path = self._folder(plan_hash) / _CURRENT
        # a promotion may move the old pointer between the two looks: the third one finds it then
        return _read_version(path) or self._old_current(plan_hash) or _read_version(path)

    def promote(
        self, version: str, *, author: Author, verdict: str = "", plan_hash: str | None = None
    ) -> AuditEntry | None:
        """Make ``version`` the one that servers of its plan load, with an entry in the audit log of the data directory that this is in: who, in the place of
        which, and why (the author's reason, and the ``verdict`` of the gate in words). Returns the entry; None: it serves already.

        ``plan_hash`` is the plan that it is meant for; ``None``: the one that it was trained on, whichever that is.

        Raises:
            PlanMismatchError: it was trained on another plan than ``plan_hash``; both are named.
            BundleError: the bundle is not fit to load; the current one stays, and there is no entry.
            OSError: the entry or the pointer could not be written.
        """
        return self._put(version, plan_hash, author, verdict)

    def put_in_service(self, version: str, *, plan_hash: str | None = None) -> None:
        """As :meth:`promote`, without an entry in the audit log: for who has written one that says more, as whoever takes a rollback back."""
        self._put(version, plan_hash, None, "")

    def _put(self, version: str, plan_hash: str | None, author: Author | None, verdict: str) -> AuditEntry | None:
        """``HISTORY`` is written first: if the process dies then, it ends with a version that never was
        current, which :meth:`rollback` passes over.
        """
        with self._locked():
            plan = self.load(version, plan_hash=plan_hash).manifest.plan_hash
            self._move_old()
            folder = self._made_folder(plan)
            try:
                before = self.current(plan)
                history = self._behind(plan, before)
            except BundleError as error:  # a damaged CURRENT must not stop the promotion that mends it
                log.warning("current_unreadable", problem=str(error))
                before, history = None, [v for v in _read_history(folder / _HISTORY_FILE) if v != version]
            if before == version:
                return None
            entry = None if author is None else self._told(author, verdict, plan, before, version)
            _write_history(folder, [*history, *([before] if before else []), version])
            replace_file(folder / _CURRENT, f"{version}\n".encode())
        log.info("bundle_promoted", version=version, before=before, plan=plan)
        return entry

    def rollback(self, plan_hash: str, to: str | None = None) -> str:
        """Go back to the version that was current for ``plan_hash`` before, or to the earlier one ``to``; returns it.

        ``CURRENT`` is written first: if the process dies then, the history is cut the next time.

        Raises:
            BundleError: there is nothing to go back to, or it is not fit to load; the current one stays.
        """
        with self._locked():
            self._move_old()
            before = self.current(plan_hash)
            history = self._behind(plan_hash, before)
            if not history:
                raise BundleError(
                    f"There is no earlier bundle of plan {plan_hash} to roll back to. Publish and promote another one."
                )
            if to is not None and to not in history:
                raise BundleError(f"{to} did not serve before {before}: no rollback leads to it. Promote it.")
            version = history[-1] if to is None else to
            history = history[: len(history) - history[::-1].index(version)]
            self.load(version, plan_hash=plan_hash)
            folder = self._made_folder(plan_hash)
            replace_file(folder / _CURRENT, f"{version}\n".encode())
            _write_history(folder, history)
        log.info("bundle_rolled_back", version=version, before=before, plan=plan_hash)
        return version

    def history(self, plan_hash: str) -> Versions:
        """The versions that a rollback of that plan leads to, the next one last."""
        return self._behind(plan_hash, self.current(plan_hash))

    def write_report(self, version: str, report: bytes) -> Path:
        """Keep the gate's report (JSON) on a bundle beside it; a later report takes its place."""
        path = self._report(version)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            replace_file(path, report)
        return path

    def report(self, version: str) -> bytes | None:
        """The gate's report on a bundle, ``None`` when there is none.

        Raises:
            BundleError: the file cannot be read.
        """
        try:
            return read_regular(self._report(version), _MOST_REPORT)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BundleError(f"The gate's report on {version} cannot be read: {error}. Promote it again.") from error

    def prune(self, keep: int, *, history: int | None = None) -> Versions:
        """Remove bundles that nobody serves and no rollback leads to, but for the newest ``keep``; returns them.

        ``history`` shortens the way back first: to so many promoted bundles of each plan, the current one not counted.
        """
        with self._locked():
            self._move_old()
            kept = self._all_current()
            for folder in self._plans.glob("*"):
                promoted = _read_history(folder / _HISTORY_FILE)
                if history is not None and len(promoted) > history + 1:
                    promoted = promoted[len(promoted) - history - 1 :]
                    _write_history(folder, promoted)
                kept.update(promoted)
            found = self._bundles.iterdir() if self._bundles.is_dir() else ()
            loose = sorted(
                path.name for path in found if VERSION_PATTERN.fullmatch(path.name) and path.name not in kept
            )
            removed = loose[: max(len(loose) - keep, 0)]
            for version in removed:
                leaving = self._bundles / f".incoming-{version}-pruned"  # gone in one step; cleared up if this dies
                (self._bundles / version).rename(leaving)
                shutil.rmtree(leaving)
                self._report(version).unlink(missing_ok=True)
        if removed:
            log.info("bundles_pruned", versions=removed)
        return removed

    def _report(self, version: str) -> Path:
        if not VERSION_PATTERN.fullmatch(version):
            raise BundleError(f"{version!r} is not a bundle version. Take one that the registry lists.")
        return self.path / "gate" / f"{version}.json"

    def stamp(self, plan_hash: str) -> tuple[Stamp | None, Stamp | None]:
        """A mark that changes with every promotion and rollback of that plan."""
        own = stamp(self._folder(plan_hash) / _CURRENT)
        return own, None if own is not None else stamp(self.path / _CURRENT)

    def _folder(self, plan_hash: str) -> Path:
        if not _PLAN.fullmatch(plan_hash):
            raise BundleError(f"{plan_hash!r} is not a plan hash. `headwater features show` prints the right one.")
        return self._plans / plan_hash

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        self.path.mkdir(parents=True, exist_ok=True)
        return writers_lock(self.path / "LOCK")

    def _made_folder(self, plan_hash: str) -> Path:
        folder = self._folder(plan_hash)
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            for parent in (self._plans, self.path):
                sync_directory(parent)
        return folder

    def _all_current(self) -> set[str]:
        """The versions that servers of any plan load; a damaged file names none."""
        plans = {path.parent.name for path in self._plans.glob(f"*/{_CURRENT}")}
        if (old := self._old_plan()) is not None:
            plans.add(old)
        found = set()
        for plan in plans:
            try:
                version = self.current(plan)
            except BundleError as error:
                log.warning("current_unreadable", problem=str(error))
            else:
                found.update([version] if version else [])
        return found

    def _behind(self, plan_hash: str, current: str | None) -> Versions:
        """Versions that were current before ``current``, oldest first."""
        history = _read_history(self._folder(plan_hash) / _HISTORY_FILE)
        if current is None:  # nothing was ever current: what stands there is from a promotion that was cut short
            return []
        if current not in history:
            return history
        last = len(history) - 1 - history[::-1].index(current)
        return history[:last]

    def _told(self, author: Author, verdict: str, plan: str, before: str | None, version: str) -> AuditEntry:
        return record(
            self.path.parent, time_ms=author.clock(), by=author.by, action="bundle.promote", subject=version,
            reason="; ".join(filter(None, (author.reason, verdict))), before=None if before is None else {"plan": plan, "version": before},
            after={"plan": plan, "version": version},
        )  # fmt: skip

    # -- one pointer for all plans, as it was before -----------------------------------------------------------

    def _old_plan(self) -> str | None:
        """The plan of the bundle that the old pointer names; None: there is no such pointer, or it leads nowhere."""
        try:
            version = _read_version(self.path / _CURRENT)
            return None if version is None else read_manifest(self._bundles / version).plan_hash
        except BundleError:
            return None

    def _old_current(self, plan_hash: str) -> str | None:
        return _read_version(self.path / _CURRENT) if self._old_plan() == plan_hash else None

    def _move_old(self) -> None:
        """Give the old pointer and what was promoted before to the plans that they belong to; the lock is held."""
        if not (self.path / _CURRENT).exists():
            return
        plan = self._old_plan()
        if plan is None:
            log.warning("current_unreadable", problem=f"{self.path / _CURRENT} leads to no bundle; it is dropped")
        elif not (self._folder(plan) / _CURRENT).exists():
            version = _read_version(self.path / _CURRENT)
            history = [v for v in _read_history(self.path / _HISTORY_FILE) if self._is_of(v, plan)]
            folder = self._made_folder(plan)
            _write_history(folder, history)
            replace_file(folder / _CURRENT, f"{version}\n".encode())
        for name in (_CURRENT, _HISTORY_FILE):
            (self.path / name).unlink(missing_ok=True)
        log.info("current_moved", plan=plan, why="the promoted bundle is kept per plan")

    def _is_of(self, version: str, plan: str) -> bool:
        try:
            return read_manifest(self._bundles / version).plan_hash == plan
        except BundleError:  # gone or damaged: nothing that one could go back to
            return False


def _read_version(path: Path) -> str | None:
    try:
        text = read_regular(path, 256).decode("ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read: {error}. Promote a version again.") from error
    if not VERSION_PATTERN.fullmatch(text):
        raise BundleError(f"{path} holds no version. Promote a version again.")
    return text


def _read_history(path: Path) -> Versions:
    try:
        lines = read_regular(path, 1 << 20).decode("ascii", "replace").split()
    except FileNotFoundError:
        return []
    return [version for version in lines if VERSION_PATTERN.fullmatch(version)]


def _write_history(folder: Path, history: Versions) -> None:
    replace_file(folder / _HISTORY_FILE, "".join(f"{version}\n" for version in history[-_HISTORY:]).encode())


class BundleWatcher:
    """Follows the current bundle of one plan for one server.

    Args:
        registry: where to look.
        plan_hash: the running plan; bundles of another are refused.
    """

    def __init__(self, registry: Registry, plan_hash: str) -> None:
        self._registry = registry
        self._plan_hash = plan_hash
        self._seen: tuple[Stamp | None, Stamp | None] = (None, None)

    def poll(self) -> Bundle | None:
        """The current bundle if it became current since the last call, else ``None``.

        A call costs one ``stat`` when nothing changed. A bundle that is refused is refused once:
        the caller keeps what it serves, and the next promotion is tried again.

        Raises:
            BundleError: the new current bundle is not fit to load.
        """
        mark = self._registry.stamp(
            self._plan_hash
        )  # taken before reading: a change in between is seen by the next call
        if mark == self._seen:
            return None
        self._seen = mark
        version = self._registry.current(self._plan_hash)
        return None if version is None else self._registry.load(version, plan_hash=self._plan_hash)
