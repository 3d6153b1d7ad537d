"""The scripts of a state in Redis. Each runs on one partition, as one step, and checks where the partition stands.

A partition has a head (a hash: ``at``, the position it stands at, and ``writer``, who may move it), a stage (a hash:
rows that a commit is about to bring, and ``to``, the position that they belong to, once the stage is whole) and buckets
of rows. A position is ``offset:number``; ``number`` counts commits. Field names of the stage are a letter and the row's
number (big-endian, 4 bytes); an empty value says that the row is gone.

Somebody who reads a whole state has a moment held (``held``, its name, and ``until``, a Unix time in s): from then on a
bucket is copied to ``bucket@moment`` before it is changed for the first time. The copy of a bucket that did not exist is the
field ``''`` alone.

Each script answers ``{verdict, position found}``; ``ok`` is the good one.
"""

from __future__ import annotations

_HEAD = """
local head = redis.call('HMGET', KEYS[1], 'at', 'writer', 'held', 'until')
local at = head[1] or '0:0'
"""

_MINE = (
    _HEAD
    + """
if head[2] ~= ARGV[1] then return {'taken', at} end
if at ~= ARGV[2] then return {'moved', at} end
"""
)

# Bring the rows of the stage into the buckets: KEYS from `first` on, whose labels stand in ARGV from `labels` on.
_MOVE = """
local held = head[3]
if held and tonumber(head[4]) < tonumber(redis.call('TIME')[1]) then held = false end
local function keep(key)
  local copy = key .. '@' .. held
  if redis.call('EXISTS', copy) == 0 then
    if redis.call('EXISTS', key) == 1 then redis.call('COPY', key, copy) else redis.call('HSET', copy, '', '') end
  end
end
local function move(stage, first, labels, width)
  local bucket = {}
  for k = first, #KEYS do bucket[ARGV[labels + k - first]] = KEYS[k] end
  local flat = redis.call('HGETALL', stage)
  local places = {}
  for i = 1, #flat, 2 do
    if flat[i] ~= 'to' then
      local label = string.sub(flat[i], 1, 1) .. string.format('%d', math.floor(struct.unpack('>I4', flat[i], 2) / width))
      if not bucket[label] then return false end
      places[i] = bucket[label]
    end
  end
  if held then
    local kept = {}
    for _, key in pairs(places) do
      if not kept[key] then keep(key); kept[key] = true end
    end
  end
  for i = 1, #flat, 2 do
    if places[i] then
      local field = string.sub(flat[i], 2)
      if flat[i + 1] == '' then redis.call('HDEL', places[i], field)
      else redis.call('HSET', places[i], field, flat[i + 1]) end
    end
  end
  redis.call('DEL', stage)
  return true
end
"""

# KEYS head of the meta partition; ARGV writer, position expected. From here on no other process can commit.
TAKE = (
    _HEAD
    + """
if at ~= ARGV[2] then return {'moved', at} end
redis.call('HSET', KEYS[1], 'writer', ARGV[1])
return {'ok', at}
"""
)

# KEYS head, stage of any partition; ARGV writer, position expected. What a process before this one staged goes.
FENCE = (
    _HEAD
    + """
if at ~= ARGV[2] then return {'moved', at} end
redis.call('HSET', KEYS[1], 'writer', ARGV[1])
redis.call('DEL', KEYS[2])
return {'ok', at}
"""
)

# KEYS head, stage; ARGV writer, position expected, target, '1' for the first part, rows of the whole stage for the
# last part (else ''), field, value, ...
STAGE = (
    _MINE
    + """
if ARGV[4] == '1' then redis.call('DEL', KEYS[2]) end
for i = 6, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
if ARGV[5] ~= '' then
  if redis.call('HLEN', KEYS[2]) ~= tonumber(ARGV[5]) then return {'torn', at} end
  redis.call('HSET', KEYS[2], 'to', ARGV[3])
end
return {'ok', at}
"""
)

# KEYS head of the meta partition, the epoch's list; ARGV writer, position expected, '1' for the first part, part.
EPOCH = (
    _MINE
    + """
if ARGV[3] == '1' then redis.call('DEL', KEYS[2]) end
redis.call('RPUSH', KEYS[2], ARGV[4])
return {'ok', at}
"""
)

# The commit point. KEYS head of the meta partition, its stage, the new epoch, the oldest one, buckets...; ARGV writer,
# position expected, target, description, rows of a bucket, parts of the epoch, labels of the buckets...
COMMIT = (
    _HEAD
    + _MOVE
    + """
if head[2] ~= ARGV[1] then return {'taken', at} end
if at == ARGV[3] then return {'ok', at} end
if at ~= ARGV[2] then return {'moved', at} end
if redis.call('HGET', KEYS[2], 'to') ~= ARGV[3] then return {'torn', at} end
if ARGV[6] ~= '0' and redis.call('LLEN', KEYS[3]) ~= tonumber(ARGV[6]) then return {'torn', at} end
if not move(KEYS[2], 5, 7, tonumber(ARGV[5])) then return {'torn', at} end
redis.call('HSET', KEYS[1], 'at', ARGV[3], 'body', ARGV[4])
if ARGV[6] ~= '0' then redis.call('DEL', KEYS[4]) end
return {'ok', ARGV[3]}
"""
)

# KEYS head, stage, buckets...; ARGV the committed position, rows of a bucket, labels of the buckets... Whoever finds a
# committed stage may apply it; again is the same as once.
APPLY = (
    _HEAD
    + _MOVE
    + """
if at == ARGV[1] then return {'ok', at} end
if redis.call('HGET', KEYS[2], 'to') ~= ARGV[1] then return {'lost', at} end
if not move(KEYS[2], 3, 3, tonumber(ARGV[2])) then return {'torn', at} end
redis.call('HSET', KEYS[1], 'at', ARGV[1])
return {'ok', ARGV[1]}
"""
)

# KEYS head, bucket; ARGV field. Answers {position, row}.
READ = """
return {redis.call('HGET', KEYS[1], 'at') or '0:0', redis.call('HGET', KEYS[2], ARGV[1])}
"""

# KEYS head of the meta partition; ARGV mark. An empty state is marked so that nobody reads or folds it meanwhile.
MARK = (
    _HEAD
    + """
if redis.call('HEXISTS', KEYS[1], 'body') == 1 or at ~= '0:0' then return {'moved', at} end
redis.call('HSET', KEYS[1], 'at', ARGV[1])
return {'ok', at}
"""
)

_HELD = """
if head[3] ~= ARGV[1] or tonumber(head[4]) < tonumber(redis.call('TIME')[1]) then return {'lost', at} end
"""

# KEYS head; ARGV moment, position expected, seconds, '1' for the partition whose head decides who holds a moment. Answers
# the description of the state, too.
HOLD = (
    _HEAD
    + """
local now = tonumber(redis.call('TIME')[1])
if ARGV[4] == '1' and head[3] and head[3] ~= ARGV[1] and tonumber(head[4]) >= now then return {'busy', at} end
if at ~= ARGV[2] then return {'moved', at} end
redis.call('HSET', KEYS[1], 'held', ARGV[1], 'until', now + ARGV[3])
return {'ok', at, redis.call('HGET', KEYS[1], 'body')}
"""
)

# KEYS head; ARGV moment, seconds. It is held for so much longer.
RENEW = (
    _HEAD
    + _HELD
    + """
redis.call('HSET', KEYS[1], 'until', redis.call('TIME')[1] + ARGV[2])
return {'ok', at}
"""
)

# KEYS head; ARGV moment.
LET_GO = (
    _HEAD
    + """
if head[3] == ARGV[1] then redis.call('HDEL', KEYS[1], 'held', 'until') end
return {'ok', at}
"""
)

# KEYS head, bucket; ARGV moment, 'HLEN' or 'HGETALL'. Answers that of the bucket as it was at the moment.
LOOK = (
    _HEAD
    + _HELD
    + """
local copy = KEYS[2] .. '@' .. ARGV[1]
if redis.call('EXISTS', copy) == 0 then copy = KEYS[2] end
if redis.call('HEXISTS', copy, '') == 1 then return {'ok', at, ARGV[2] == 'HLEN' and 0 or {}} end
return {'ok', at, redis.call(ARGV[2], copy)}
"""
)
