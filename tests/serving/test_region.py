"""Which region a text names, as of the item columns."""

from __future__ import annotations

import numpy as np

from headwater.features.assemble import stranger
from headwater.features.layout import U_SEGMENT
from headwater.features.plan import compile_plan
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
    user = stranger(compile_plan(Config()))
    where = StoredRegion(Vocabulary(log.above))
    assert where(user, 1) == 0
    user.u4[U_SEGMENT] = np.uint32(1)
    assert where(user, 1) == 0
    user.u4[U_SEGMENT + 1] = np.uint32(2)
    assert where(user, 1) == 2
