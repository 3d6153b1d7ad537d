"""What a writer can be asked to do, and the methods that ask it, the same in process and over a socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from msgspec import Struct

from headwater.log.batch import EventBatch, WireBatch
from headwater.log.protocol import ImportRange
from headwater.schema.items import Item
from headwater.schema.users import UserProfile


class ServedEntry(Struct, frozen=True, array_like=True):
    """A served list to record: dense user and surrogate (0, 0: a stranger) and the encoded ``ServedList``.

    ``trial``: it is tried out, and neither learnt from nor measured.
    """

    user: int
    surrogate: int
    payload: bytes
    trial: bool = False


class ExposureEntry(Struct, frozen=True, array_like=True):
    """An exposure to record: dense user and surrogate, or (0, 0) and the id of a user that nobody knew when the list was given;
    and the encoded ``ExposureRecord``.
    """

    user: int
    surrogate: int
    external: str
    payload: bytes


class AppendEvents(Struct, frozen=True):
    """Record events; with ``source`` once only, whatever its age."""

    batch: EventBatch
    source: ImportRange | None = None


class AppendWire(Struct, frozen=True, array_like=True, tag="events"):
    """:class:`AppendEvents` between two processes."""

    batch: WireBatch
    source: ImportRange | None = None


class PutItems(Struct, frozen=True, array_like=True, tag="items"):
    """Upsert items. ``at_ms``: received then and not now (imports); ``source``: once only."""

    items: list[Item]
    at_ms: int | None = None
    source: ImportRange | None = None


class DeleteItems(Struct, frozen=True, array_like=True, tag="delete"):
    """Take items out of the catalogue; ids that were never seen are not counted as accepted."""

    ids: list[str]


class PutProfiles(Struct, frozen=True, array_like=True, tag="profiles"):
    """Replace profiles; recorded encrypted with each user's key. ``at_ms`` and ``source`` as with items."""

    profiles: list[UserProfile]
    at_ms: int | None = None
    source: ImportRange | None = None


class PutTable(Struct, frozen=True, array_like=True, tag="table"):
    """Values of one of the ``[[tables]]``: a row for each of ``ids``, valid from a moment in ``valid_from_ms``.

    ``values`` hold a number for each of ``columns``; ``None``: missing. Users are assigned numbers as for events; items
    that nobody ever named are not recorded and not counted as accepted. A row that is valid from a later moment than
    its record would have is refused with the whole command. ``at_ms`` and ``source`` as with items.
    """

    table: str
    entity: Literal["user", "item"]
    columns: list[str]
    ids: list[str]
    valid_from_ms: list[int]
    values: list[list[float | None]]
    at_ms: int | None = None
    source: ImportRange | None = None


class AppendServed(Struct, frozen=True, array_like=True, tag="served"):
    """Record lists that were shown."""

    entries: list[ServedEntry]


class AppendExposures(Struct, frozen=True, array_like=True, tag="exposures"):
    """Record that users saw variants of experiments. Who was not known is assigned a number, as for an event."""

    entries: list[ExposureEntry]


class AppendShadows(Struct, frozen=True, array_like=True, tag="shadows"):
    """Record lists that shadows would have given; the payload is the encoded ``ShadowList``. Nobody saw them."""

    entries: list[ServedEntry]


class EraseUsers(Struct, frozen=True, array_like=True, tag="erase"):
    """Destroy keys, mappings and (by the fold) state rows; ids that were never seen are not counted."""

    ids: list[str]


class TrimLog(Struct, frozen=True, array_like=True, tag="trim"):
    """Remove a part of the oldest records up to and with ``upto``; ``accepted`` says how many: again until it is 0.

    Records that the dedup window is rebuilt from stay, and so does the newest block.
    """

    upto: int


class Login(Struct, frozen=True, array_like=True, tag="login"):
    """An anonymous session turned out to be ``user``."""

    anonymous: str
    user: str


class Ping(Struct, frozen=True, array_like=True, tag="ping"):
    """Change nothing; the answer says where the log ends."""


Command = (
    AppendEvents
    | PutItems
    | DeleteItems
    | PutProfiles
    | PutTable
    | AppendServed
    | AppendExposures
    | AppendShadows
    | EraseUsers
    | TrimLog
    | Login
    | Ping
)


class Appended(Struct, frozen=True, array_like=True, tag="ok"):
    """What a command did. ``offset`` is the log's end once it was durable: the freshness token.

    ``duplicates`` were inside the dedup window and changed nothing; ``already``: the import range was
    recorded before.
    """

    accepted: int
    duplicates: int
    offset: int
    already: bool = False


class Commands(Protocol):
    """Blocking writers: give ``commit``, get the methods."""

    def commit(self, command: Command) -> Appended:
        """Do ``command`` durably. Raises ``RefusedError``, ``UnavailableError``."""
        ...

    def append_events(self, batch: EventBatch) -> Appended:
        """Record events."""
        return self.commit(AppendEvents(batch))

    def append_import(self, batch: EventBatch, source: ImportRange) -> Appended:
        """Record imported events; a range that is recorded already adds nothing (``already``)."""
        return self.commit(AppendEvents(batch, source))

    def put_items(
        self, items: Sequence[Item], *, at_ms: int | None = None, source: ImportRange | None = None
    ) -> Appended:
        """Upsert items."""
        return self.commit(PutItems(list(items), at_ms, source))

    def delete_items(self, ids: Sequence[str]) -> Appended:
        """Take items out of the catalogue."""
        return self.commit(DeleteItems(list(ids)))

    def put_profiles(
        self, profiles: Sequence[UserProfile], *, at_ms: int | None = None, source: ImportRange | None = None
    ) -> Appended:
        """Replace user profiles."""
        return self.commit(PutProfiles(list(profiles), at_ms, source))

    def append_served(self, entries: Sequence[ServedEntry]) -> Appended:
        """Record lists that were shown."""
        return self.commit(AppendServed(list(entries)))

    def append_exposures(self, entries: Sequence[ExposureEntry]) -> Appended:
        """Record exposures to experiments."""
        return self.commit(AppendExposures(list(entries)))

    def append_shadows(self, entries: Sequence[ServedEntry]) -> Appended:
        """Record lists that nobody was shown."""
        return self.commit(AppendShadows(list(entries)))

    def erase_users(self, ids: Sequence[str]) -> Appended:
        """Destroy what ties these users to their history."""
        return self.commit(EraseUsers(list(ids)))

    def trim_log(self, upto: int) -> Appended:
        """Remove some of the oldest records."""
        return self.commit(TrimLog(upto))

    def login(self, anonymous: str, user: str) -> Appended:
        """Join an anonymous session to a user."""
        return self.commit(Login(anonymous, user))

    def ping(self) -> Appended:
        """Where the log ends."""
        return self.commit(Ping())


class AsyncCommands(Protocol):
    """Awaitable writers: give ``commit``, get the methods of :class:`Commands`."""

    async def commit(self, command: Command) -> Appended:
        """Do ``command`` durably. Raises ``RefusedError``, ``UnavailableError``."""
        ...

    async def append_events(self, batch: EventBatch) -> Appended:
        """Record events."""
        return await self.commit(AppendEvents(batch))

    async def append_import(self, batch: EventBatch, source: ImportRange) -> Appended:
        """Record imported events; a range that is recorded already adds nothing (``already``)."""
        return await self.commit(AppendEvents(batch, source))

    async def put_items(
        self, items: Sequence[Item], *, at_ms: int | None = None, source: ImportRange | None = None
    ) -> Appended:
        """Upsert items."""
        return await self.commit(PutItems(list(items), at_ms, source))

    async def delete_items(self, ids: Sequence[str]) -> Appended:
        """Take items out of the catalogue."""
        return await self.commit(DeleteItems(list(ids)))

    async def put_profiles(
        self, profiles: Sequence[UserProfile], *, at_ms: int | None = None, source: ImportRange | None = None
    ) -> Appended:
        """Replace user profiles."""
        return await self.commit(PutProfiles(list(profiles), at_ms, source))

    async def append_served(self, entries: Sequence[ServedEntry]) -> Appended:
        """Record lists that were shown."""
        return await self.commit(AppendServed(list(entries)))

    async def append_exposures(self, entries: Sequence[ExposureEntry]) -> Appended:
        """Record exposures to experiments."""
        return await self.commit(AppendExposures(list(entries)))

    async def append_shadows(self, entries: Sequence[ServedEntry]) -> Appended:
        """Record lists that nobody was shown."""
        return await self.commit(AppendShadows(list(entries)))

    async def erase_users(self, ids: Sequence[str]) -> Appended:
        """Destroy what ties these users to their history."""
        return await self.commit(EraseUsers(list(ids)))

    async def trim_log(self, upto: int) -> Appended:
        """Remove some of the oldest records."""
        return await self.commit(TrimLog(upto))

    async def login(self, anonymous: str, user: str) -> Appended:
        """Join an anonymous session to a user."""
        return await self.commit(Login(anonymous, user))

    async def ping(self) -> Appended:
        """Where the log ends."""
        return await self.commit(Ping())
