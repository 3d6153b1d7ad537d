"""A bundle: everything a server needs to rank, in one directory with a manifest that vouches for each byte.

``manifest.json`` names every file with its SHA-256 and size, and the version ends in the manifest's own
hash. Loading reads each file once and hands out the bytes it has checked, so nothing can change between
check and use. Only formats that cannot run code are let in.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from headwater.registry.array_check import check_array
from headwater.registry.errors import BundleError as BundleError
from headwater.registry.errors import PlanMismatchError as PlanMismatchError
from headwater.registry.files import read_regular, sync_directory, write_synced
from headwater.registry.onnx_check import check_onnx

FORMAT = 2
MANIFEST = "manifest.json"
MAX_MANIFEST = 4 << 20
MAX_FILE = 8 << 30
VERSION_PATTERN = re.compile(r"[0-9]{8}T[0-9]{9}Z-[0-9a-f]{12}")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")
_SUFFIXES = (".txt", ".json", ".md", ".npy", ".onnx")
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_CONTAINERS = {b"PK\x03\x04": "a zip archive (as torch and .npz files are)", b"\x1f\x8b": "a gzip archive"}


class FileEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """What a file must be: SHA-256 in hex, size in bytes."""

    sha256: str
    size: int


class DataRange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The stretch of the log that was trained on, both ends included; times are ``received_ms``."""

    first_offset: int
    last_offset: int
    first_ms: int
    last_ms: int


class ManifestFields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the publisher of a bundle states about it.

    ``columns`` are the feature columns the ranker expects, in order: those of the plan, then a score of each fitted source
    (``sources``). ``ranker`` is its kind (``lightgbm``, ``deep`` or ``none``); ``training`` holds the parameters, seed and library versions that the training was run with.
    """

    created_ms: int
    plan_hash: str
    columns: tuple[str, ...]
    ranker: str
    sources: tuple[str, ...] = ()
    event_types: tuple[str, ...]
    data: DataRange
    metrics: dict[str, float] = {}
    training: dict[str, str | int | float | bool | None] = {}


class Manifest(ManifestFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``manifest.json``. ``version`` is the creation time in UTC, to the millisecond, and the hash of all the rest."""

    format: int
    version: str
    files: dict[str, FileEntry]


class _Format(Struct, frozen=True):
    format: int


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every byte was checked. ``files`` holds the contents, the manifest left out."""

    path: Path
    manifest: Manifest
    files: Mapping[str, bytes]

    @property
    def version(self) -> str:
        return self.manifest.version


def unwritten(fields: ManifestFields, files: Mapping[str, bytes]) -> Bundle:
    """The bundle that these would be, in memory only: to open and judge it before it is published.

    Raises:
        BundleError: as :func:`write_bundle`.
    """
    for name, data in files.items():
        _check_name(name)
        _check_content(name, data)
    entries = {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()}
    manifest = _seal(_checked(fields), entries)
    return Bundle(Path(manifest.version), manifest, dict(files))


def write_bundle(directory: Path, fields: ManifestFields, files: Mapping[str, bytes]) -> Path:
    """Write a bundle below ``directory`` and return its path ``directory/version``.

    It appears whole or not at all: everything is on disk under a temporary name before the one rename.
    Writing the same bundle again changes nothing.

    Raises:
        BundleError: a file name or content that no bundle may hold, manifest fields of a wrong type or not
            finite, or a damaged bundle of this version that stands there already.
    """
    manifest = unwritten(fields, files).manifest
    target = directory / manifest.version
    if target.exists():
        load_bundle(target, plan_hash=None)
        return target
    incoming = directory / f".incoming-{manifest.version}-{os.getpid()}"
    if incoming.exists():
        shutil.rmtree(incoming)
    incoming.mkdir(parents=True)
    for name, data in files.items():
        write_synced(incoming / name, data)
    write_synced(incoming / MANIFEST, _render(manifest))
    sync_directory(incoming)
    os.rename(incoming, target)  # noqa: PTH104  (one system call, named as what it is)
    sync_directory(directory)
    return target


def load_bundle(path: Path, *, plan_hash: str | None) -> Bundle:
    """Read and check a bundle; ``plan_hash`` is that of the running plan (``None``: any, for listings and tools).

    Raises:
        PlanMismatchError: trained on another plan.
        BundleError: anything else that is wrong; nothing of the bundle is used then.
    """
    manifest = read_manifest(path)
    if plan_hash is not None and manifest.plan_hash != plan_hash:
        raise PlanMismatchError(manifest.version, manifest.plan_hash, plan_hash)
    present = {entry.name for entry in path.iterdir()}
    for name in sorted(present - set(manifest.files) - {MANIFEST}):
        raise BundleError(
            f"{path} holds {name!r}, which its manifest does not name. Remove the bundle and publish it again."
        )
    files = {name: _read_file(path, name, entry) for name, entry in sorted(manifest.files.items())}
    return Bundle(path, manifest, files)


def read_manifest(path: Path) -> Manifest:
    """Read and check the manifest alone (the files it names are not looked at).

    Raises:
        BundleError: absent, unreadable, altered, of a later format, or standing under another version's name.
    """
    again = "Remove the bundle and publish it again."
    if path.is_symlink() or not path.is_dir():
        raise BundleError(f"{path} is not a bundle directory. Promote one that `Registry.list()` shows.")
    try:
        data = read_regular(path / MANIFEST, MAX_MANIFEST)
        later = msgspec.json.decode(data, type=_Format).format
        if later > FORMAT:
            raise BundleError(
                f"{path} has bundle format {later}, this version reads up to {FORMAT}. Update Headwater here, or roll back."
            )
        if later < FORMAT:
            raise BundleError(
                f"{path} has bundle format {later}, of an earlier release; this one reads {FORMAT}. Train and publish again."
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except OSError as error:
        raise BundleError(f"The manifest of {path} cannot be read: {error}. {again}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"The manifest of {path} is damaged: {error}. {again}") from error
    if _seal(manifest, manifest.files).version != manifest.version or _render(manifest) != data:
        raise BundleError(f"The manifest of {path} was altered: its hash is not the one in its version. {again}")
    if path.name != manifest.version:
        raise BundleError(f"{path} holds version {manifest.version}. Give the directory that name.")
    return manifest


def _seal(fields: ManifestFields, files: dict[str, FileEntry]) -> Manifest:
    """The manifest with the version that its own contents give."""
    stated = {name: getattr(fields, name) for name in ManifestFields.__struct_fields__}
    unsealed = Manifest(**stated, format=FORMAT, version="", files=files)
    digest = hashlib.sha256(_encode(unsealed)).hexdigest()[:12]
    moment = datetime.fromtimestamp(fields.created_ms // 1000, UTC)
    version = f"{moment:%Y%m%dT%H%M%S}{fields.created_ms % 1000:03d}Z-{digest}"
    return msgspec.structs.replace(unsealed, version=version)


def _checked(fields: ManifestFields) -> ManifestFields:
    """The fields as a reader of the JSON will see them (a metric of ``1`` is ``1.0`` there), or an error."""
    stated = {name: getattr(fields, name) for name in ManifestFields.__struct_fields__}
    for name, value in (fields.metrics | fields.training).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise BundleError(f"{name!r} of the manifest is {value}, which no manifest can hold. Leave it out.")
    try:
        return msgspec.convert(msgspec.to_builtins(stated), ManifestFields)
    except (msgspec.ValidationError, TypeError) as error:
        raise BundleError(f"A manifest field has a wrong type: {error}. Correct what is published.") from error


def _encode(manifest: Manifest) -> bytes:
    return msgspec.json.encode(manifest, order="sorted")


def _render(manifest: Manifest) -> bytes:
    return msgspec.json.format(_encode(manifest), indent=2) + b"\n"


def _read_file(path: Path, name: str, entry: FileEntry) -> bytes:
    again = "The bundle was not loaded; remove it and publish it again."
    _check_name(name)
    try:
        data = read_regular(path / name, min(entry.size, MAX_FILE))
    except OSError as error:
        raise BundleError(f"{path / name} cannot be read: {error}. {again}") from error
    if len(data) != entry.size:
        raise BundleError(f"{path / name} is truncated: {len(data)} of {entry.size} bytes. {again}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry.sha256:
        raise BundleError(f"{path / name} has SHA-256 {digest}, its manifest says {entry.sha256}. {again}")
    _check_content(name, data)
    return data


def file_alone(bundles: Path, manifest: Manifest, name: str, what: str) -> bytes | None:
    """The file ``name`` of a bundle in the folder ``bundles`` without the rest of it, which may be large; ``None`` when it was published without one.
    ``what`` names it in messages.

    Raises:
        BundleError: it cannot be read, or is damaged.
    """
    entry = manifest.files.get(name)
    if entry is None:
        return None
    try:
        data = read_regular(bundles / manifest.version / name, entry.size)
    except OSError as error:
        raise BundleError(f"{what} of {manifest.version} cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise BundleError(f"{what} of {manifest.version} is damaged: it is not what the manifest vouches for")
    return data


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or not name.endswith(_SUFFIXES) or name == MANIFEST:
        raise BundleError(
            f"A bundle may not hold a file named {name!r}: allowed are letters, digits, '_', '.', '-' and the endings "
            f"{', '.join(_SUFFIXES)}. Pickles and torch files can run code when they are opened; export another format."
        )


def _check_content(name: str, data: bytes) -> None:
    if _PICKLE.match(data):
        raise BundleError(f"{name} is a pickle, which can run code when it is opened. Export it in another format.")
    for magic, what in _CONTAINERS.items():
        if data.startswith(magic):
            raise BundleError(f"{name} is {what}. Publish plain files instead.")
    if name.endswith(".npy"):
        check_array(name, data)
    elif name.endswith(".onnx"):
        check_onnx(name, data)
