"""Errors that a person can act on."""

from __future__ import annotations


class HeadwaterError(Exception):
    """Something a user can correct; its message says what is wrong, where, and what to do."""


class ConfigurationError(HeadwaterError):
    """The configuration file is wrong."""


class UnavailableError(HeadwaterError):
    """A part of the system cannot be reached at the moment; trying again is safe."""


class WaitError(UnavailableError):
    """Somebody else is being served just now; it will be free in a moment."""
