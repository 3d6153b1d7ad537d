"""Request bodies: strict JSON, and in a batch each entry on its own, so that a bad one costs nobody else."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import msgspec

from headwater.online.errors import RefusalError
from headwater.schema.events import MAX_BATCH, Event, Rejection, field_of

T = TypeVar("T")

MAX_BODY = 8 * 1024 * 1024

_raw_list = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Entries(Generic[T]):
    """The good entries of a batch, and why the others were refused."""

    good: list[T]
    rejected: list[Rejection]


def decode_one(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The value in ``body``. Raises :class:`RefusalError` 400 that names the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        field, reason = field_of(error)
        raise RefusalError(400, reason, field) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RefusalError(400, f"Not valid JSON: {error}", "$") from error
    except RecursionError as error:
        raise RefusalError(400, "Nested too deeply", "$") from error


class BatchDecoder(Generic[T]):
    """Decodes one object or an array of at most ``MAX_BATCH``.

    ``check`` looks at an entry that fits the schema and returns (field, reason) when it is refused all the same.
    """

    def __init__(self, kind: type[T], check: Callable[[T], tuple[str, str] | None] | None = None) -> None:
        self._one = msgspec.json.Decoder(kind)
        self._many = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]
        self._check = check

    def decode(self, body: bytes) -> Entries[T]:
        """The entries of ``body``.

        Raises:
            RefusalError: 400, no JSON, an empty array or no good entry at all; 413, too many entries.
        """
        if body.lstrip()[:1] != b"[":
            entries = self._checked([decode_one(self._one, body)])
        else:
            entries = self._decode_array(body)
        if not entries.good:
            first = entries.rejected[0]
            raise RefusalError(400, first.reason, first.field, rejected=entries.rejected)
        return entries

    def _decode_array(self, body: bytes) -> Entries[T]:
        try:
            values = self._many.decode(body)
        except (msgspec.ValidationError, RecursionError):
            return self._decode_each(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RefusalError(400, f"Not valid JSON: {error}", "$") from error
        _check_count(values)
        return self._checked(values)

    def _decode_each(self, body: bytes) -> Entries[T]:
        """One by one: at least one entry does not fit."""
        pieces = decode_one(_raw_list, body)
        _check_count(pieces)
        good: list[T] = []
        rejected: list[Rejection] = []
        for index, piece in enumerate(pieces):
            try:
                value = decode_one(self._one, bytes(piece))
            except RefusalError as refusal:
                rejected.append(Rejection(index, refusal.field, str(refusal)))
                continue
            wrong = self._check(value) if self._check is not None else None
            if wrong is None:
                good.append(value)
            else:
                rejected.append(Rejection(index, *wrong))
        return Entries(good, rejected)

    def _checked(self, values: list[T]) -> Entries[T]:
        if self._check is None:
            return Entries(values, [])
        wrong = [self._check(value) for value in values]
        if not any(wrong):
            return Entries(values, [])
        return Entries(
            [value for value, why in zip(values, wrong, strict=True) if why is None],
            [Rejection(index, *why) for index, why in enumerate(wrong) if why is not None],
        )


def _check_count(values: Sequence[object]) -> None:
    if not values:
        raise RefusalError(400, "Expected at least one entry", "$")
    if len(values) > MAX_BATCH:
        raise RefusalError(413, f"Expected at most {MAX_BATCH} entries, got {len(values)}; send smaller batches", "$")


def event_check(names: Sequence[str]) -> Callable[[Event], tuple[str, str] | None]:
    """Refuses events of a type that is not configured, naming the nearest one that is."""
    known = frozenset(names)

    @lru_cache(maxsize=256)
    def why(name: str) -> tuple[str, str]:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f'did you mean "{close[0]}"?' if close else f"there are {', '.join(names)}"
        return "type", f'There is no event type "{name}"; {hint}'

    return lambda event: None if event.type in known else why(event.type)
