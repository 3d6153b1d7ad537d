"""The registry: bundles, which one is current, and the way back.

``bundles/<version>/`` are the bundles, ``CURRENT`` holds the version that servers load, and ``HISTORY`` the
versions that were promoted, oldest first. Each of the two files is replaced in one step; their order
makes every instant between safe (see :meth:`Registry.promote` and :meth:`Registry.rollback`).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import structlog
from msgspec import Struct

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
from headwater.registry.files import Stamp, read_regular, replace_file, stamp, writers_lock

_HISTORY = 200
Versions = list[str]
log = structlog.get_logger()


class Listed(Struct, frozen=True):
    """A line of :meth:`Registry.list`. ``problem`` says why the manifest cannot be used (it is ``None`` then)."""

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
        self._current = path / "CURRENT"
        self._history = path / "HISTORY"

    def list(self) -> list[Listed]:
        """Every bundle, newest first. The manifests are checked, the files they name are not."""
        if not self._bundles.is_dir():
            return []
        current = self.current()
        listed = []
        for version in sorted((p.name for p in self._bundles.iterdir() if not p.name.startswith(".")), reverse=True):
            manifest, problem = None, None
            try:
                manifest = read_manifest(self._bundles / version)
            except BundleError as error:
                problem = str(error)
            listed.append(Listed(version, version == current, manifest, problem))
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

    def current(self) -> str | None:
        """The version that servers load; ``None`` when none was promoted yet.

        Raises:
            BundleError: the file ``CURRENT`` holds something else.
        """
        try:
            text = read_regular(self._current, 256).decode("ascii").strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{self._current} cannot be read: {error}. Promote a version again.") from error
        if not VERSION_PATTERN.fullmatch(text):
            raise BundleError(f"{self._current} holds no version. Promote a version again.")
        return text

    def promote(self, version: str, *, plan_hash: str | None = None) -> None:
        """Make ``version`` the one that servers load, after checking it whole.

        ``HISTORY`` is written first: if the process dies then, it ends with a version that never was
        current, which :meth:`rollback` passes over.

        Raises:
            BundleError: the bundle is not fit to load; the current one stays.
        """
        with self._locked():
            self.load(version, plan_hash=plan_hash)
            try:
                before = self.current()
                history = self._behind(before)
            except BundleError as error:  # a damaged CURRENT must not stop the promotion that mends it
                log.warning("current_unreadable", problem=str(error))
                before, history = None, [v for v in self._read_history() if v != version]
            if before == version:
                return
            self._write_history([*history, *([before] if before else []), version])
            replace_file(self._current, f"{version}\n".encode())
        log.info("bundle_promoted", version=version, before=before)

    def rollback(self, *, plan_hash: str | None = None) -> str:
        """Go back to the version that was current before; returns it.

        ``CURRENT`` is written first: if the process dies then, the history is cut the next time.

        Raises:
            BundleError: there is nothing to go back to, or it is not fit to load; the current one stays.
        """
        with self._locked():
            before = self.current()
            history = self._behind(before)
            if not history:
                raise BundleError("There is no earlier bundle to roll back to. Publish and promote another one.")
            version = history[-1]
            self.load(version, plan_hash=plan_hash)
            replace_file(self._current, f"{version}\n".encode())
            self._write_history(history)
        log.info("bundle_rolled_back", version=version, before=before)
        return version

    def stamp(self) -> Stamp | None:
        """A mark that changes with every promotion and rollback, for :meth:`changed`."""
        return stamp(self._current)

    def changed(self, since: Stamp | None) -> bool:
        """Whether another version became current since ``since`` was taken; one ``stat`` call."""
        return stamp(self._current) != since

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        self.path.mkdir(parents=True, exist_ok=True)
        return writers_lock(self.path / "LOCK")

    def _behind(self, current: str | None) -> Versions:
        """Versions that were current before ``current``, oldest first."""
        history = self._read_history()
        if current is None:  # nothing was ever current: what stands there is from a promotion that was cut short
            return []
        if current not in history:
            return history
        last = len(history) - 1 - history[::-1].index(current)
        return history[:last]

    def _read_history(self) -> Versions:
        try:
            lines = read_regular(self._history, 1 << 20).decode("ascii", "replace").split()
        except FileNotFoundError:
            return []
        return [version for version in lines if VERSION_PATTERN.fullmatch(version)]

    def _write_history(self, history: Versions) -> None:
        replace_file(self._history, "".join(f"{version}\n" for version in history[-_HISTORY:]).encode())


class BundleWatcher:
    """Follows the current bundle for one server.

    Args:
        registry: where to look.
        plan_hash: the running plan; bundles of another are refused.
    """

    def __init__(self, registry: Registry, plan_hash: str) -> None:
        self._registry = registry
        self._plan_hash = plan_hash
        self._seen: Stamp | None = None

    def poll(self) -> Bundle | None:
        """The current bundle if it became current since the last call, else ``None``.

        A call costs one ``stat`` when nothing changed. A bundle that is refused is refused once:
        the caller keeps what it serves, and the next promotion is tried again.

        Raises:
            BundleError: the new current bundle is not fit to load.
        """
        mark = self._registry.stamp()  # taken before reading: a change in between is seen by the next call
        if mark == self._seen:
            return None
        self._seen = mark
        version = self._registry.current()
        return None if version is None else self._registry.load(version, plan_hash=self._plan_hash)
