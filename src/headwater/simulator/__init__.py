"""A world with known preferences: it makes a catalogue, people, their history and live visits, and judges lists."""

from headwater.simulator.catalogue import Catalogue
from headwater.simulator.history import EVENT_TYPES, History
from headwater.simulator.life import Life
from headwater.simulator.people import People
from headwater.simulator.scenario import Scenario, load_scenario
from headwater.simulator.world import World

__all__ = ["EVENT_TYPES", "Catalogue", "History", "Life", "People", "Scenario", "World", "load_scenario"]
