"""``headwater doctor``: is this machine ready, and is what runs on it well?"""

from __future__ import annotations
import typer
def register(app: typer.Typer) -> None:
    """Add ``doctor``."""
