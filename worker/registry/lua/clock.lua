-- Repairs times after a step of Redis' clock. Invariant: after a step back no task waits longer
-- than without the step, and no claim of a living worker is lost; after a step ahead no claim
-- lapses because of it. A second call finds nothing to do. A step back shows against the latest
-- time of any claim; a step ahead is reported by a worker that saw it.
-- ARGV: ns, lease (ms), step that the worker has seen (ms; 0: none)
-- Returns the step (ms) that was repaired, or 0.
local now, lease, seen = now_ms(), tonumber(ARGV[2]), tonumber(ARGV[3])
local clock = redis.call('HMGET', ns .. ':clock', 'at', 'stepped_at')
local at, stepped_at = number(clock[1], 0, latest_time), tonumber(clock[2])
local by = 0
if at and now < at - clock_step then
  by = now - at
elseif seen > clock_step and not (stepped_at and math.abs(now - stepped_at) < 10000) then
  by = seen
end
redis.call('HSET', ns .. ':clock', 'at', ms(now))
if by == 0 then return '0' end
redis.call('HSET', ns .. ':clock', 'stepped_at', ms(now), 'by', ms(by))
count('clock_steps', 1)

local function back(time) return math.max(now, time + by) end

-- A match is always a member: a quote within a string has a backslash before it.
local function back_in(text, name)
  return (string.gsub(text, '"' .. name .. '": ?(%d+)', function(time)
    if tonumber(time) <= now then return nil end
    return '"' .. name .. '": ' .. ms(back(tonumber(time)))
  end))
end

local function notes_back(kind, id)
  local key = work_key(id)
  local asked, deadline = unpack(read('HMGET', key, 'asked_from', 'deadline_at') or {})
  asked, deadline = tonumber(asked), tonumber(deadline)
  if asked and asked > now then
    redis.call('HSET', key, 'asked_from', ms(now))
    if deadline then redis.call('HSET', key, 'deadline_at', ms(deadline - (asked - now))) end
  end
  for _, name in ipairs({'seen_at', 'doubted_at', 'succeeded_at'}) do
    local time = tonumber(read('HGET', key, name))
    if time and time > now then redis.call('HSET', key, name, ms(now)) end
  end
  if kind == 'copy' or kind == 'fetch' then
    for _, field in ipairs(read('HKEYS', key) or {}) do
      if string.sub(field, 1, 4) == 'try:' then
        redis.call('HSET', key, field, back_in(redis.call('HGET', key, field), 'at'))
      end
    end
  elseif kind == 'tell' then
    local told = read('HGET', task_key(id), 'told')
    if told then redis.call('HSET', task_key(id), 'told', back_in(told, 'next_at')) end
  end
end

for _, kind in ipairs({'poll', 'copy', 'fetch', 'tell'}) do
  local due = due_key(kind)
  local from, to = '(' .. ms(now), '+inf'
  if by > 0 then from, to = '-inf', ms(now) end
  local found = redis.call('ZRANGEBYSCORE', due, from, to, 'WITHSCORES')
  for i = 1, #found, 2 do
    local id, score = found[i], tonumber(found[i + 1])
    local claimed = (read('HMGET', work_key(id), 'token') or {})[1]
    if claimed then
      redis.call('ZADD', due, ms(now + lease), id)
    elseif by < 0 then
      redis.call('ZADD', due, ms(back(due_since(score, now))), id)
    end
    if by < 0 then notes_back(kind, id) end
  end
end
if by > 0 then return ms(by) end

-- at most now, or moved back by the step
local function hash_back(key, names, most)
  for _, name in ipairs(names) do
    local time = tonumber(redis.call('HGET', key, name))
    if time and time > now then redis.call('HSET', key, name, ms(most(time))) end
  end
end
local function current() return now end
hash_back(ns .. ':rate', {'at', 'looks'}, current)
local times = {}
for _, name in ipairs({'upstream', 'store', 'store:reads', 'redis', 'broker', 'broker:replies',
  'webhooks'}) do
  for _, part in ipairs({'', ':since', ':at'}) do times[#times + 1] = name .. part end
end
hash_back(ns .. ':services', times, current)
redis.call('DEL', ns .. ':webhooks')  -- failing hosts are noted again at their next try
for _, name in ipairs({'upstream', 'store', 'tell'}) do
  hash_back(ns .. ':circuit:' .. name, {'opened_at'}, current)
  hash_back(ns .. ':circuit:' .. name, {'probe_at'}, back)
end
-- how long an entry of the stream has been in hand is Redis' own time: it begins again
local cursor = '0-0'
repeat
  local found = redis.pcall('XAUTOCLAIM', ns .. ':intake', 'harvester', 'fleet', 0, cursor, 'JUSTID')
  cursor = found.err and '0-0' or found[1]
until cursor == '0-0'
for name, most in pairs({expiring = back, suspects = current, workers = current}) do
  local found = redis.call('ZRANGEBYSCORE', ns .. ':' .. name, '(' .. ms(now), '+inf', 'WITHSCORES')
  for i = 1, #found, 2 do
    redis.call('ZADD', ns .. ':' .. name, ms(most(tonumber(found[i + 1]))), found[i])
  end
end
return ms(by)
