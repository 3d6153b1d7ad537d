"""How much a body holds, told before anything is made of it.

A decoder checks lengths when it has the whole list: 8 MiB of ``[0,0,0,...`` become 4 million objects and 320 MB before
it can say that a batch has at most 10,000 entries. Counting commas costs a nanosecond a byte and no memory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.jit import kernel
from headwater.online.errors import RefusalError
from headwater.schema.events import MAX_BATCH

MAX_VALUES = 8_192  # of one entry, all levels together; an item with every field at its longest has about 1,200

_QUOTE, _BACKSLASH, _COMMA = ord('"'), ord("\\"), ord(",")
_OPEN, _CLOSE = (ord("["), ord("{")), (ord("]"), ord("}"))
_SMALL = 2 * min(
    MAX_BATCH, MAX_VALUES
)  # a shorter body cannot hold too much: a value takes a byte, and its comma another
_FITS, _ENTRIES, _VALUES = 0, 1, 2


def check_size(body: bytes) -> None:
    """Refuse an array of more than ``MAX_BATCH`` entries, and an entry of more than ``MAX_VALUES`` values.

    Exact for valid JSON; of any other, at most what comes before the fault counts.

    Raises:
        RefusalError: 413.
    """
    if len(body) <= _SMALL:
        return
    found = measure(np.frombuffer(body, np.uint8), MAX_BATCH, MAX_VALUES)
    if found == _ENTRIES:
        raise RefusalError(413, f"Expected at most {MAX_BATCH} entries; send smaller batches", "$")
    if found == _VALUES:
        raise RefusalError(413, f"Expected at most {MAX_VALUES} values in an entry", "$")


@kernel
def measure(body: npt.NDArray[np.uint8], most_entries: int, most_values: int) -> int:
    """0: fits; 1: more entries than ``most_entries``; 2: an entry with more values than ``most_values``.

    Entries are those of an outermost array (anything else is one entry), values the commas inside an entry plus one.
    """
    depth, entries, values, quoted = 0, 1, 1, False
    outermost = -1  # depth of the commas between entries: 1 in an array, never in anything else
    position = 0
    while position < len(body):
        byte = body[position]
        position += 1
        if quoted:
            if byte == _BACKSLASH:
                position += 1
            elif byte == _QUOTE:
                quoted = False
        elif byte == _QUOTE:
            quoted = True
        elif byte == _OPEN[0] or byte == _OPEN[1]:
            if depth == 0 and outermost == -1:
                outermost = 1 if byte == _OPEN[0] else 0
            depth += 1
        elif byte == _CLOSE[0] or byte == _CLOSE[1]:
            depth -= 1
        elif byte == _COMMA:
            if depth == outermost:
                entries, values = entries + 1, 1
                if entries > most_entries:
                    return _ENTRIES
            else:
                values += 1
                if values > most_values:
                    return _VALUES
    return _FITS
