"""What the log keeps of an experiment."""

from __future__ import annotations

from msgspec import Struct

FOLDER = "experiments"
"""Where definitions lie in a data directory."""

INTERLEAVED = "interleaved"
"""What exposures and served lists call the variant of those who get the lists of two variants in one."""


class ExposureRecord(Struct, frozen=True, array_like=True):
    """Payload of an ``EXPOSURE`` record: a user got a list from where the variants part.

    ``version`` names what the variants were then (:attr:`headwater.experiments.definitions.Experiment.version`),
    ``request_id`` the list. A user has one record an hour for each worker that they met, so readers count users, not records.
    """

    experiment: str
    variant: str
    version: str
    request_id: str
