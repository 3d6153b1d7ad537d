"""What differs between two bundles: their manifests and cards, value by value."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from headwater.registry.bundle import Bundle
from headwater.registry.card import CARD_FILE, CARD_TEXT, ModelCard, read_card

Flat = dict[str, str | int | float | bool | None]


class Change(Struct, frozen=True):
    """A value that differs; ``None`` where a bundle does not have it."""

    key: str
    first: str | int | float | bool | None
    second: str | int | float | bool | None


def difference(first: Bundle, second: Bundle) -> list[Change]:
    """All that differs, in the order of the manifest, then of the card. Lists are compared by what they gain and lose."""
    changes = _columns(first, second)
    ours, theirs = _flat(first), _flat(second)
    for key in dict.fromkeys((*ours, *theirs)):
        if ours.get(key) != theirs.get(key):
            changes.append(Change(key, ours.get(key), theirs.get(key)))
    return changes


def _columns(first: Bundle, second: Bundle) -> list[Change]:
    changes = []
    for name in ("columns", "sources", "event_types"):
        ours, theirs = getattr(first.manifest, name), getattr(second.manifest, name)
        gone, new = [n for n in ours if n not in theirs], [n for n in theirs if n not in ours]
        if gone or new:
            changes.append(Change(name, ", ".join(gone) or None, ", ".join(new) or None))
        elif ours != theirs:
            changes.append(Change(name, ", ".join(ours), ", ".join(theirs)))
    return changes


def _flat(bundle: Bundle) -> Flat:
    manifest = msgspec.to_builtins(bundle.manifest)
    for known in ("columns", "sources", "event_types", "files"):
        del manifest[known]
    flat = _flattened(manifest, "")
    for name, entry in bundle.manifest.files.items():
        if name not in (CARD_FILE, CARD_TEXT):  # they differ whenever anything does
            flat[f"files.{name}.size"], flat[f"files.{name}.sha256"] = entry.size, entry.sha256[:12]
    card = read_card(bundle)
    return flat | ({} if card is None else _flattened(_measured(card), "card"))


def _measured(card: ModelCard) -> dict[str, object]:
    """What the card knows beyond the manifest."""
    return {"licence": card.licence, "history": card.history, "versions": card.versions,
            "held_out": msgspec.to_builtins(card.held_out)}  # fmt: skip


def _flattened(value: object, prefix: str) -> Flat:
    flat: Flat = {}
    if isinstance(value, dict):
        for name, inner in value.items():
            flat |= _flattened(inner, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, list | tuple):
        for at, inner in enumerate(value):
            flat |= _flattened(inner, f"{prefix}[{at}]")
    elif value is None or isinstance(value, str | int | float | bool):
        flat[prefix] = value
    return flat
