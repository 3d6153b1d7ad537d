"""A world with known preferences: it makes a catalogue, people, their history and live visits, and judges lists."""

from headwater.simulator.catalogue import Catalogue
from headwater.simulator.history import EVENT_TYPES, History
from headwater.simulator.people import People
from headwater.simulator.world import World

__all__ = ["EVENT_TYPES", "Catalogue", "History", "People", "World"]
