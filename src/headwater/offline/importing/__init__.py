"""Import of histories and catalogues: files in, records of the log out, once each.

``mapping`` (which column is which field) → ``files`` and ``sources`` (ranges of rows) → ``columns``,
``details``, ``events`` (the columnar way) or ``lines``, ``items`` (the way by row) → ``run`` (to the writer).
"""

from headwater.offline.importing.jobs import Target, import_events, import_items
from headwater.offline.importing.mapping import ImportFailedError, Mapping, parse_assignments
from headwater.offline.importing.movielens import import_movielens
from headwater.offline.importing.run import ImportReport, Progress
from headwater.offline.importing.sources import FileOptions

__all__ = [
    "FileOptions",
    "ImportFailedError",
    "ImportReport",
    "Mapping",
    "Progress",
    "Target",
    "import_events",
    "import_items",
    "import_movielens",
    "parse_assignments",
]
