"""What an expression may ask about: typed fields of the candidate item, of the request and of its user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from headwater.schema.errors import ConfigurationError


class Kind(StrEnum):
    """What a field holds, and so what it compares with."""

    NUMBER = "number"  # float32
    TEXT = "text"  # a code, 0: none; of a request also the text itself
    TIME = "time"  # Unix ms
    DURATION = "duration"  # ms


@dataclass(frozen=True, slots=True)
class Field:
    """A field by its ``name``.

    ``per_item``: it differs by candidate; else it is a fact of the request. ``many``: an item holds several texts, and
    a comparison asks whether one of them fits. ``optional``: it may be missing; a comparison with something that is missing does
    not hold. ``space``: texts of equal spaces have equal codes. ``low`` and ``high`` bound what it can be, ``choices`` are
    all the texts that there are (empty: any).
    """

    name: str
    kind: Kind
    per_item: bool
    about: str = ""
    many: bool = False
    optional: bool = True
    space: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    moves: bool = False  # it changes as time goes by


class UnknownFieldError(ConfigurationError):
    """There is no such field, or the state does not hold it; the message says why and what is near."""


class Fields:
    """The fields that there are. ``refused`` says of names that people expect why there is no such field; of a name that ends
    in ``.`` it speaks for all that begin with it, and ``{name}`` stands for what follows.
    """

    def __init__(self, known: Iterable[Field], refused: Mapping[str, str]) -> None:
        self._known = {field.name: field for field in known}
        self._refused = dict(refused)

    def __iter__(self) -> Iterator[Field]:
        return iter(self._known.values())

    def find(self, name: str) -> Field:
        """The field called ``name``.

        Raises:
            UnknownFieldError: there is none.
        """
        field = self._known.get(name)
        if field is not None:
            return field
        close = difflib.get_close_matches(name, self._known, n=1, cutoff=0.7)
        hint = f', did you mean "{close[0]}"?' if close else ""
        if name in self._refused:
            raise UnknownFieldError(f'There is no field "{name}": {self._refused[name]}')
        for prefix, why in self._refused.items():
            if prefix.endswith(".") and name.startswith(prefix):
                why = why.replace("{name}", name.removeprefix(prefix))
                raise UnknownFieldError(f'There is no field "{name}"{hint or ":"} {why}')
        there = f" (there are {', '.join(self._known)})"
        raise UnknownFieldError(f'There is no field "{name}"{hint or there}')
