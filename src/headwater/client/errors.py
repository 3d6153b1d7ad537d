"""What can go wrong between a client and a server, by what the caller can do about it."""

from __future__ import annotations

from headwater.schema.errors import HeadwaterError, UnavailableError


class ClientError(HeadwaterError):
    """The server answered with an error; ``status`` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class RejectedError(ClientError):
    """The request was wrong and will stay wrong: correct ``field`` (a JSON path, where the server named one)."""

    def __init__(self, message: str, status: int, field: str | None = None) -> None:
        super().__init__(message, status)
        self.field = field


class UnauthorizedError(ClientError):
    """The API key is missing, wrong or not allowed to do this."""


class NotFoundError(ClientError):
    """There is no such item or path."""


class ServerError(ClientError):
    """The server failed; the request may or may not have taken effect, and repeating it is safe."""


class OverloadedError(ClientError, UnavailableError):
    """The server takes no more at the moment; ``retry_after_s`` is when to come back, where it said so."""

    def __init__(self, message: str, status: int, retry_after_s: float | None = None) -> None:
        super().__init__(message, status)
        self.retry_after_s = retry_after_s


class TransportError(UnavailableError):
    """No answer came: the server is not there, the connection broke or the time was over."""
