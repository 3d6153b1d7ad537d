"""People beside those of the world's own history: a state of as many users as wanted, and some who are known well.

The world makes a visit in detail, list by list, which is slow for a million people. Here everybody has clicked before it
began, as often as the readers of a news site (:mod:`headwater.cli.bench.activity`), on items by a power law; and ``ASKERS``
people, those whom a measurement lets ask, have clicked on as many items lately as a model looks at.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.cli.bench.activity import DAY_MS, DAYS, START_MS, activity, drawn_counts
from headwater.cli.local import Site
from headwater.evaluation.world_log import history_batch
from headwater.features.fold import Fold
from headwater.features.plan import compile_plan
from headwater.features.profiles import Profiles
from headwater.features.recovery import open_fold_state
from headwater.log.archived import open_log
from headwater.log.writer import open_writer
from headwater.schema.config import load_config
from headwater.simulator import World
from headwater.simulator.catalogue import HOUR_MS
from headwater.simulator.history import CLICK, History

ASKERS = 20_000
"""The first users of a world: activity is drawn without order, so they are like all others."""

_AT_ONCE = 262_144  # events of a batch


def write_everybody(site: Site, world: World, seed: int) -> int:
    """Clicks of all users in the twelve days before the world begins, on what is there when it begins; how many."""
    rng = np.random.default_rng([seed, 21])
    items = world.items_born(0, world.start_ms)
    begins_ms = world.start_ms - DAYS * DAY_MS - DAY_MS  # the last sessions go on after the twelve days
    with open_writer(site.data, clock=lambda: begins_ms) as writer:
        writer.put_items(items, at_ms=begins_ms)
    made = activity(drawn_counts(len(world.people), rng), seed, items=len(items))
    time_ms = made.time_ms - START_MS + begins_ms
    _append(
        site,
        world,
        made.user.astype(np.int64) - 1,
        made.item.astype(np.int64) - 1,
        np.minimum(time_ms, world.start_ms - 1),
    )
    return len(made)


def write_askers(site: Site, world: World, recent: int, seed: int) -> int:
    """``recent`` clicks of each asker in the hour after the world ends, on what is there then; how many."""
    rng = np.random.default_rng([seed, 22])
    alive = np.flatnonzero(world.catalogue.alive(world.end_ms))
    weights = np.cumsum(world.catalogue.popularity[alive])
    count = min(ASKERS, len(world.people))
    user = np.repeat(np.arange(count), recent)
    item = alive[np.minimum(np.searchsorted(weights, rng.random(len(user)) * weights[-1]), len(alive) - 1)]
    time_ms = world.end_ms + (rng.random(len(user)) * HOUR_MS).astype(np.int64)
    order = np.argsort(time_ms, kind="stable")
    _append(site, world, user[order], item[order], time_ms[order])
    return len(user)


def fold_site(site: Site) -> None:
    """Bring the state up to the log's end with few commits and one epoch: a server that finds it there begins at once."""
    config = load_config(site.config)
    plan = compile_plan(config)
    log = open_log(site.data)
    state = open_fold_state(config, site.data, plan, log)
    try:
        fold = Fold(plan, state, unseal=Profiles(site.data))
        while (block := log.read(fold.offset, _AT_ONCE)) is not None:
            fold.apply(block)
            if fold.users.used > 2 * fold.cache_users:
                fold.commit(epoch=False)
        fold.commit(epoch=True)
    finally:
        state.close()
        log.close()


def _append(
    site: Site, world: World, user: npt.NDArray[np.int64], item: npt.NDArray[np.int64], time_ms: npt.NDArray[np.int64]
) -> None:
    segment_keys = load_config(site.config).segments.keys
    with open_writer(site.data, clock=lambda: int(time_ms[-1]), segment_keys=segment_keys) as writer:
        for start in range(0, len(user), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            none = np.zeros(len(user[part]), np.int32)
            clicks = History(
                time_ms=time_ms[part], user=user[part].astype(np.int32), item=item[part].astype(np.int32),
                type=np.full(len(none), CLICK, np.uint8), value=np.full(len(none), np.nan, np.float32),
                device=world.people.device[user[part]].astype(np.uint8), session=none, listing=none,
                position=none.astype(np.uint8),
            )  # fmt: skip
            writer.append_events(history_batch(world, clicks, segment_keys, lists=False))
