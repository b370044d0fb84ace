"""Lua scripts that keep the frames of a stream within their bounds, inside the Redis server.

Each script is atomic, so that JPEGs, index and sums always agree, even after a crash. Storing a
frame takes the same time however many frames there are: it examines a few of the oldest ones.
"""

from streamer.redis_client.memory_reserve import TAKE_ROOM

# An entry of an index holds, in this order: ref, expires (ms), at (ms of arrival), bytes, change.
# KEYS of every script: bytes by stream, ages. ARGV: index prefix, state prefix, JPEG prefix, ...
_COMMON = """
local BYTES, AGES = KEYS[1], KEYS[2]
local INDEX, STATE, JPEG = ARGV[1], ARGV[2], ARGV[3]

local function entries(stream, from, count)
  local found = {}
  for i, raw in ipairs(redis.call('XRANGE', INDEX .. stream, from, '+', 'COUNT', count)) do
    local f = raw[2]
    found[i] = {id = raw[1], expires = tonumber(f[4]), at = tonumber(f[6]),
                bytes = tonumber(f[8]), change = tonumber(f[10])}
  end
  return found
end

local function after(id, other)
  local ms, seq = string.match(id, '(%d+)-(%d+)')
  local other_ms, other_seq = string.match(other, '(%d+)-(%d+)')
  ms, other_ms = tonumber(ms), tonumber(other_ms)
  return ms > other_ms or (ms == other_ms and tonumber(seq) > tonumber(other_seq))
end

local function sum(stream) return tonumber(redis.call('HGET', BYTES, stream) or '0') end

local function forget(stream, id, bytes)
  if redis.call('XDEL', INDEX .. stream, id) == 0 then return 0 end
  redis.call('UNLINK', JPEG .. stream .. ':' .. id)
  redis.call('HINCRBY', BYTES, stream, -bytes)
  redis.call('HINCRBY', BYTES, 'total', -bytes)
  return bytes
end

-- Deletes the oldest frame, which no tier may have examined yet.
local function pop(stream, entry)
  local freed = forget(stream, entry.id, entry.bytes)
  local cursor = redis.call('HGET', STATE .. stream, 'cursor1')
  if freed > 0 and cursor and after(entry.id, cursor) then
    redis.call('HINCRBY', STATE .. stream, 'dense_bytes', -entry.bytes)
    redis.call('HINCRBY', STATE .. stream, 'dense_count', -1)
  end
  return freed
end

-- After frames were deleted: update the age of the oldest frame, or delete all keys of the stream.
local function settle(stream)
  local first = entries(stream, '-', 1)[1]
  if first then
    redis.call('ZADD', AGES, string.format('%.0f', first.at), stream)
  else
    redis.call('HINCRBY', BYTES, 'total', 0 - sum(stream))  -- not -0
    redis.call('HDEL', BYTES, stream)
    redis.call('ZREM', AGES, stream)
    redis.call('UNLINK', STATE .. stream, STATE .. stream .. ':dates', INDEX .. stream)
  end
end

-- Deletes the oldest frames of all streams until `wanted` bytes are free, at most `limit` frames.
local function make_room(wanted, limit)
  local freed = 0
  while freed < wanted and limit > 0 do
    local stream = redis.call('ZRANGE', AGES, 0, 0)[1]
    if not stream then break end
    local nextage = redis.call('ZRANGE', AGES, 1, 1, 'WITHSCORES')[2]
    for _, entry in ipairs(entries(stream, '-', 16)) do
      if freed >= wanted or limit < 1 then break end
      if nextage and entry.at > tonumber(nextage) then break end
      freed = freed + pop(stream, entry)
      limit = limit - 1
    end
    settle(stream)
    limit = limit - 1
  end
  return freed
end
"""

# ARGV from 4: stream, TTL ms, now ms, maximum frames, maximum bytes, minimum frames, maximum bytes
# of all streams or 0, token of the stream's owner or 0, number of words of the tiers, for each tier
# age ms and slot ms, then for each frame, in order of time: capture ms, reference, JPEG, change,
# bytes of the frame
# Stores all of the frames or none. Returns their ids, or false if a frame was stored with a higher
# token: another worker has taken over.
PUT = (
    _COMMON
    + TAKE_ROOM
    + """
local stream, ttl, now = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local max_frames, max_bytes = tonumber(ARGV[7]), tonumber(ARGV[8])
local min_frames, budget = tonumber(ARGV[9]), tonumber(ARGV[10])
local frames = 13 + tonumber(ARGV[12])
local index, state = INDEX .. stream, STATE .. stream
local count, wanted = 0, 0
for f = frames, #ARGV, 5 do count, wanted = count + 1, wanted + tonumber(ARGV[f + 4]) end
if not take_room(wanted, 0) then return redis.error_reply('OOM no room for a frame') end

local info, newest, last_id = redis.pcall('XINFO', 'STREAM', index), false, false
if not info.err then
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last_id = info[i + 1] end
    if info[i] == 'last-entry' then newest = info[i + 1] end
  end
end

-- 0. Refuse a former owner. Answer a client that repeats frames, because the reply was lost.
local token, guard = tonumber(ARGV[11]), STATE .. stream .. ':token'
if token > 0 then
  local highest = tonumber(redis.call('GET', guard) or '0')
  if token < highest then return false end
  if token > highest then redis.call('SET', guard, ARGV[11]) end
  redis.call('EXPIRE', guard, 3600)
  if newest and newest[2][2] == ARGV[#ARGV - 3] then
    local known, ids = {}, {}
    for _, raw in ipairs(redis.call('XREVRANGE', index, '+', '-', 'COUNT', count)) do
      known[raw[2][2]] = raw[1]
    end
    for f = frames, #ARGV, 5 do ids[#ids + 1] = known[ARGV[f + 1]] or '' end  -- deleted since
    return ids
  end
end

-- 1. Returns an id that grows, even if the capture clock stands still or is set back. Then ids are
-- ahead of capture times by a shift, which is stored with the first id that has it.
local dates, shift = STATE .. stream .. ':dates', 0
local noted = redis.call('LINDEX', dates, -1)
if noted then shift = tonumber(string.match(noted, ' (%-?%d+)$')) end
local function next_id(ms)
  local seq, first = 0, false
  if last_id then
    local last_ms, last_seq = string.match(last_id, '(%d+)-(%d+)')
    last_ms, last_seq = tonumber(last_ms), tonumber(last_seq)
    if ms > last_ms then
      first, shift = shift ~= 0, 0
    elseif ms + shift <= last_ms - 1000 then
      first, shift = true, last_ms + 1 - ms
    end
    ms = ms + shift
    if ms <= last_ms then ms, seq = last_ms, last_seq + 1 end
  end
  last_id = string.format('%.0f-%.0f', ms, seq)
  return last_id, first
end

local function note_shift(id)
  redis.call('RPUSH', dates, id .. string.format(' %.0f', shift))
  redis.call('LTRIM', dates, -32, -1)
  noted = true
end

-- Deletes frames of this stream before one more of `size` bytes is stored.
local function trim(size)
  -- 2. Delete the oldest ones while they are too old, too many or too large.
  local length, held, touched = redis.call('XLEN', index), sum(stream), false
  for _ = 1, 64 do
    local entry = entries(stream, '-', 1)[1]
    if not entry then break end
    local over = length + 1 > max_frames or (held + size > max_bytes and length + 1 > min_frames)
    if not over and entry.expires > now and entry.at + ttl > now then break end
    held = held - pop(stream, entry)
    length, touched = length - 1, true
  end

  -- 3. Thin with age: keep the frame of greatest change in each slot of time.
  if frames > 13 then
    local dense = redis.call('HMGET', state, 'dense_bytes', 'dense_count')
    local dense_bytes, dense_count = tonumber(dense[1] or held), tonumber(dense[2] or length)
    local reached
    for t = 13, frames - 1, 2 do
      local age, slot_ms, n = tonumber(ARGV[t]), tonumber(ARGV[t + 1]), (t - 11) / 2
      local names = {'cursor' .. n, 'slot' .. n, 'best' .. n, 'bytes' .. n, 'change' .. n}
      local c = redis.call('HMGET', state, unpack(names))
      local cursor, slot, best = c[1] or '0-0', c[2], c[3]
      local best_bytes, best_change = tonumber(c[4] or '0'), tonumber(c[5] or '0')
      for _, entry in ipairs(entries(stream, '(' .. cursor, 2)) do
        local crowded = n == 1 and dense_count > min_frames
                        and (dense_bytes > max_bytes / 2 or dense_count > max_frames / 2)
        if (now - entry.at < age and not crowded) or (reached and after(entry.id, reached)) then
          break
        end
        local its = string.format('%.0f', math.floor(entry.at / slot_ms))
        local loser, loser_bytes = entry.id, entry.bytes
        if its ~= slot or entry.change > best_change then
          loser, loser_bytes = its == slot and best or nil, best_bytes
          slot, best, best_bytes, best_change = its, entry.id, entry.bytes, entry.change
        end
        if loser and forget(stream, loser, loser_bytes) > 0 then touched = true end
        cursor = entry.id
        if n == 1 then
          dense_bytes, dense_count = dense_bytes - entry.bytes, dense_count - 1
        end
      end
      reached = cursor
      if best then
        redis.call('HSET', state, names[1], cursor, names[2], slot, names[3], best,
                   names[4], best_bytes, names[5], tostring(best_change))
      else
        redis.call('HSET', state, names[1], cursor)
      end
    end
    redis.call('HSET', state, 'dense_bytes', string.format('%.0f', dense_bytes + size),
               'dense_count', dense_count + 1)
    redis.call('PEXPIRE', state, string.format('%.0f', ttl))
  elseif redis.call('EXISTS', state) == 1 then
    redis.call('UNLINK', state)
  end
  if touched then settle(stream) end
end

-- 4. Delete expired frames of another stream, which may store no more frames itself.
local other = redis.call('ZRANDMEMBER', AGES)
if other and other ~= stream then
  for _, entry in ipairs(entries(other, '-', 2 * count)) do
    if entry.expires > now then break end
    pop(other, entry)
  end
  settle(other)
end

-- 5. Deletes the oldest frames of all streams while all together are too large.
local function fit(size)
  local excess = sum('total') + size - budget
  if excess > 0 then make_room(excess, 64) end
end

-- 6. Store the frames.
local ids, ttl_text = {}, string.format('%.0f', ttl)
for f = frames, #ARGV, 5 do
  local size = tonumber(ARGV[f + 4])
  local id, first = next_id(tonumber(ARGV[f]))
  trim(size)
  if budget > 0 then fit(size) end
  -- it is deleted with the last frame of a stream
  if first or (shift ~= 0 and redis.call('EXISTS', dates) == 0) then note_shift(id) end
  redis.call('SET', JPEG .. stream .. ':' .. id, ARGV[f + 2], 'PX', ttl_text)
  redis.call('XADD', index, id, 'ref', ARGV[f + 1], 'expires', string.format('%.0f', now + ttl),
             'at', string.format('%.0f', now), 'bytes', ARGV[f + 4], 'change', ARGV[f + 3])
  redis.call('HINCRBY', BYTES, stream, size)
  redis.call('HINCRBY', BYTES, 'total', size)
  redis.call('ZADD', AGES, 'NX', string.format('%.0f', now), stream)
  ids[#ids + 1] = id
end
if noted then redis.call('PEXPIRE', dates, ttl_text) end
for _, key in ipairs({index, BYTES, AGES}) do
  if redis.call('PTTL', key) < ttl then redis.call('PEXPIRE', key, ttl_text) end
end
return ids
"""
)

# ARGV from 4: bytes to free. A full server allows a script to write after it has deleted.
MAKE_ROOM = _COMMON + "return make_room(tonumber(ARGV[4]), 4096)"

# ARGV from 4: stream, token. Returns false if a higher token was shown before.
CLAIM = (
    _COMMON
    + """
local guard = STATE .. ARGV[4] .. ':token'
local token, highest = tonumber(ARGV[5]), tonumber(redis.call('GET', guard) or '0')
if token < highest then return false end
redis.call('SET', guard, ARGV[5], 'EX', 3600)
return 1
"""
)

# ARGV from 4: stream
DISCARD = (
    _COMMON
    + """
local stream = ARGV[4]
for _, entry in ipairs(redis.call('XRANGE', INDEX .. stream, '-', '+')) do
  redis.call('UNLINK', JPEG .. stream .. ':' .. entry[1])
end
redis.call('UNLINK', INDEX .. stream)
redis.call('EXPIRE', STATE .. stream .. ':token', 300)
settle(stream)
if redis.call('ZCARD', AGES) == 0 then redis.call('UNLINK', BYTES) end
"""
)

# Frames that have expired leave the index when the next one is stored.
# KEYS: indices of streams. ARGV: now in milliseconds, how many expired frames to pass over. Returns
# for each the reference of its oldest frame, or ''.
OLDEST = """
local found = {}
for i, index in ipairs(KEYS) do
  found[i] = ''
  for _, entry in ipairs(redis.call('XRANGE', index, '-', '+', 'COUNT', ARGV[2])) do
    local fields = {}
    for f = 1, #entry[2], 2 do fields[entry[2][f]] = entry[2][f + 1] end
    if tonumber(fields.expires) > tonumber(ARGV[1]) then
      found[i] = fields.ref
      break
    end
  end
end
return found
"""
