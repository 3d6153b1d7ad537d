"""What can be wrong with a bundle."""

from __future__ import annotations

from headwater.schema.errors import HeadwaterError


class BundleError(HeadwaterError):
    """A bundle is damaged, incomplete or not allowed; it was not loaded."""


class PlanMismatchError(BundleError):
    """The bundle was trained on another feature plan than the one that is running."""

    def __init__(self, version: str, trained: str, running: str) -> None:
        super().__init__(
            f"Bundle {version} was trained on plan {trained}, but this configuration compiles to plan {running}. "
            "Train and publish again, or take back the change to [features] and [[events]]."
        )
        self.trained = trained
        self.running = running
