"""The typed Python client: :class:`Client` and :class:`AsyncClient` speak to a running server."""

from headwater.client.clients import AsyncClient, Client
from headwater.client.errors import (
    ClientError,
    NotFoundError,
    OverloadedError,
    RejectedError,
    ServerError,
    TransportError,
    UnauthorizedError,
)
from headwater.client.exchange import Retries

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "NotFoundError",
    "OverloadedError",
    "RejectedError",
    "Retries",
    "ServerError",
    "TransportError",
    "UnauthorizedError",
]
