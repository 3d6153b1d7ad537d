"""A login: two user rows become one."""

from __future__ import annotations

import numpy as np

from headwater.features.bounded import COUNT_BITS, MOST_SHOWN, like, remember, see, show
from headwater.features.fold_kernel import Programs, Workspace, advance_user, begin_anew, set_moment
from headwater.features.layout import U_CLOCK, U_FIRST, U_RECENT_LENGTH, U_SEEN_LENGTH, U_SEGMENT, U_ZONE
from headwater.features.rowset import Rows
from headwater.jit import kernel


@kernel
def merge_user(
    users: Rows, source: int, target: int, received_ms: int, programs: Programs, workspace: Workspace
) -> None:  # fmt: skip
    """Add everything of row ``source`` (an anonymous session) to row ``target``, then empty ``source``.

    Decayed sums and windows meet at the later of the two clocks; the sequences interleave by time; counts add; of
    two latest values the later one stays (the target's at one time), of two vectors of factors the one that learnt more. Attributes and table values stay the target's.
    A row that was idle for too long at ``received_ms`` is as good as none.
    """
    layout, program, affinities = programs.layout, programs.users, programs.affinities
    s_i8, s_f4, s_u4 = users.i8[source], users.f4[source], users.u4[source]
    t_i8, t_f4, t_u4 = users.i8[target], users.f4[target], users.u4[target]
    begin_anew(s_i8, s_f4, s_u4, received_ms, layout)
    begin_anew(t_i8, t_f4, t_u4, received_ms, layout)
    clock = max(s_i8[U_CLOCK], t_i8[U_CLOCK])
    latest, _ = set_moment(workspace, programs.lives, clock)
    for i8, f4 in ((s_i8, s_f4), (t_i8, t_f4)):
        if clock > i8[U_CLOCK]:
            advance_user(i8, f4, clock, latest, program, affinities, programs.lives, workspace)
    if t_i8[U_FIRST] == 0 or 0 < s_i8[U_FIRST] < t_i8[U_FIRST]:
        t_i8[U_FIRST] = s_i8[U_FIRST]
    for c in program.times:
        t_i8[c] = max(t_i8[c], s_i8[c])
    for c in range(program.cells):
        t_f4[c] = np.float32(t_f4[c] + s_f4[c])
    for w in range(len(program.windows)):
        at = program.windows[w, 0]
        for c in range(at, at + programs.lives.tiles[program.windows[w, 1]]):
            t_f4[c] = np.float32(t_f4[c] + s_f4[c])
    for k in range(len(program.lasts)):
        f4_at, i8_at = program.lasts[k, 0], program.lasts[k, 1]
        if s_i8[i8_at] > t_i8[i8_at]:
            t_f4[f4_at], t_i8[i8_at] = s_f4[f4_at], s_i8[i8_at]
    for k in range(2):
        if t_u4[U_SEGMENT + k] == 0:
            t_u4[U_SEGMENT + k] = s_u4[U_SEGMENT + k]
    if t_u4[U_ZONE] == 0:
        t_u4[U_ZONE] = s_u4[U_ZONE]
    for c in program.counts:
        t_u4[c] += s_u4[c]
    for c in program.maxima:
        t_u4[c] = max(t_u4[c], s_u4[c])
    for k in range(len(program.distincts)):
        for c in range(program.distincts[k, 0], program.distincts[k, 0] + program.distincts[k, 1]):
            for byte in range(4):
                mask = np.uint32(0xFF) << np.uint32(8 * byte)
                t_u4[c] = (t_u4[c] & ~mask) | max(t_u4[c] & mask, s_u4[c] & mask)
    for g in range(len(affinities.f4)):
        weights, keys, size = affinities.f4[g], affinities.u4[g], affinities.size[g]
        for k in range(size):
            if s_u4[keys + k] != 0:
                like(t_f4, t_u4, int(s_u4[keys + k]), float(s_f4[weights + k]),
                      int(s_u4[keys + size + k]), False, weights, keys, size)  # fmt: skip
    at, size = programs.factors.user_f4, programs.factors.size
    if size > 0 and s_f4[at + size] > t_f4[at + size]:  # factors do not add: those that learnt more stay
        for c in range(at, at + size + 1):
            t_f4[c] = s_f4[c]
    for k in range(np.int64(s_u4[U_RECENT_LENGTH])):
        remember(t_u4, int(s_u4[layout.recent_keys + k]), int(s_u4[layout.recent_times + k]), layout)
    added = int(s_u4[U_SEEN_LENGTH])
    for k in range(max(added - layout.seen_size, 0), added):  # oldest first: a full ring drops its oldest
        see(t_u4, int(s_u4[layout.seen + k % layout.seen_size]), layout)
    for k in range(layout.untouched_size):
        word = int(np.int64(s_u4[layout.untouched + k]))  # signed: an unsigned one would make all it meets unsigned
        if word != 0:
            time_s = int(np.int64(s_u4[layout.untouched + layout.untouched_size + k]))
            show(t_u4, word >> COUNT_BITS, word & MOST_SHOWN, time_s, layout)
    s_i8[:] = 0
    s_f4[:] = np.float32(0.0)
    s_u4[:] = np.uint32(0)
