"""Which region a text names, as of the item columns."""

from __future__ import annotations

import numpy as np

from headwater.features.layout import U_SEGMENT
from headwater.features.plan import compile_plan
from headwater.features.rows import User, new_rows
from headwater.log.protocol import Vocabulary
from headwater.log.record import Namespace
from headwater.schema.config import Config
from headwater.serving.region import Regions, StoredRegion


class Log:
    """The terms of a log, and how often they were read."""

    def __init__(self) -> None:
        self.terms: dict[Namespace, list[str]] = {namespace: [] for namespace in Namespace}
        self.reads: list[Namespace] = []

    def above(self, namespace: Namespace, size: int) -> list[str]:
        self.reads.append(namespace)
        return self.terms[namespace][size:]


def test_the_log_is_read_once_for_each_state_of_the_items() -> None:
    log = Log()
    regions = Regions(Vocabulary(log.above))
    assert [regions.index(text, 7) for text in ("SE", "NO", "SE")] == [0, 0, 0]
    assert log.reads == [Namespace.REGION]
    log.terms[Namespace.REGION].append("NO")
    assert [regions.index(text, 7) for text in ("SE", "NO")] == [0, 0]  # no item of these columns can be limited to it
    assert [regions.index(text, 8) for text in ("SE", "NO")] == [0, 1]
    assert len(log.reads) == 2


def test_a_user_is_where_the_last_known_country_is() -> None:
    log = Log()
    log.terms[Namespace.SEGMENT] = ["device=phone", "country=NO"]
    log.terms[Namespace.REGION] = ["SE", "NO"]
    layout = compile_plan(Config()).layout
    rows = new_rows(1, layout.user_i8, layout.user_f4, layout.user_u4)
    user = User(rows.i8[0], rows.f4[0], rows.u4[0])
    where = StoredRegion(Vocabulary(log.above))
    assert where(user, 1) == 0
    user.u4[U_SEGMENT] = np.uint32(1)
    assert where(user, 1) == 0
    user.u4[U_SEGMENT + 1] = np.uint32(2)
    assert where(user, 1) == 2
