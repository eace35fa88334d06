-- Claims due tasks: each gets the fresh token, and its due time moves to now + lease.
-- Invariant: a claim removes nothing, so a claim that is never heard of again comes due by itself;
-- no more is claimed than slots and rate allow, so that nothing waits claimed for its turn.
-- Crash caps: a claim found with its token still on has lapsed. Each lapse halves the number of
-- tasks that may be in hand beside it in one process; only a lapse at cap 1, alone, is counted.
-- An open circuit lets one claim through when its probe is due. A task that may be the cause itself
-- (the upstream refused it, or answered oddly about it) proves nothing: it is passed over as long as
-- another one is due, and these take turns, since each try puts them later.
-- Nothing is claimed by a clock that has stepped: clock.lua comes first. For two leases after a step
-- no lapse is held against a task.
-- ARGV: ns, kind, token, limit, in hand, slots, lease (ms), circuit, owner,
--       rate ('' = none), burst, now as the worker expects it (ms; '' = it does not know)
-- Returns {now, wait (ms until it is worth looking again; -1: the clock has stepped), probe, held cap,
--          behind (ms that what is overdue takes at the rate there is; 0 without a rate),
--          {id, {record...}, {work...}, due time before the claim}...}
-- A task whose keys are of a wrong type is set aside, and stands in the answer without a record.
local kind, token = ARGV[2], ARGV[3]
local limit, in_hand, slots = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local lease, circuit = tonumber(ARGV[7]), ns .. ':circuit:' .. ARGV[8]
local rate, burst = tonumber(ARGV[10]), tonumber(ARGV[11])
local due, claim = due_key(kind), ns .. ':claim:' .. token
local now = now_ms()

local was, aside = {}, {}
local tokens, factor
if rate then tokens, factor = rate_tokens(now, rate, burst) end

local function answer(ids, wait, probe, held)
  local behind = rate and redis.call('ZCOUNT', due, '-inf', ms(now)) * 1000 / (rate * factor) or 0
  local out = {ms(now), ms(wait), probe, held, ms(behind)}
  for _, id in ipairs(ids) do
    local work = redis.call('HGETALL', work_key(id))
    out[#out + 1] = {id, redis.call('HGETALL', task_key(id)), work, was[id]}
  end
  for _, id in ipairs(aside) do out[#out + 1] = {id, {}, {}, ms(now)} end
  return out
end

local function next_wait()
  local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
  if not first[2] then return 60000 end
  return math.max(0, tonumber(first[2]) - now)
end

-- asked again by the client library: the same tasks, as far as they are still ours
local before = redis.call('LRANGE', claim, 0, -1)
if #before > 0 then
  local ids = {}
  for i = 2, #before, 2 do
    if ownership(before[i], token) == 'ok' then
      ids[#ids + 1] = before[i]
      was[before[i]] = before[i + 1]
    end
  end
  return answer(ids, 0, tonumber(before[1]), 0)
end

local clock = redis.call('HMGET', ns .. ':clock', 'at', 'stepped_at')
local latest, expected = tonumber(clock[1]), tonumber(ARGV[12])
if (latest and now < latest - clock_step)
  or (expected and math.abs(now - expected) > clock_step) then
  return {ms(now), '-1', 0, 0, '0'}
end
redis.call('HSET', ns .. ':clock', 'at', ms(now))
local unsettled = clock[2] and now - tonumber(clock[2]) < 2 * lease

local probe = 0
local probe_at = tonumber(redis.call('HGET', circuit, 'probe_at'))
if probe_at then
  if now < probe_at then return answer({}, probe_at - now, 0, 0) end
  probe, limit = 1, math.min(limit, 1)
end

if rate then
  if tokens < 1 then
    local refill = math.ceil((1 - tokens) * 1000 / (rate * factor))
    return answer({}, math.max(refill, next_wait()), 0, 0)
  end
  limit = math.min(limit, math.floor(tokens))
end

-- Whether a worker that knows no 'fetch' has left the task here: it put one that stands in 'fetch' into
-- 'copy' too, or ended one that did.
local function left_over(id)
  if kind == 'copy' then return redis.call('ZSCORE', due_key('fetch'), id) end
  local state = kind == 'fetch' and read('HGET', task_key(id), 'state')
  return state and state ~= 'waiting' and state ~= 'copying'
end

local ids, held, cap_now, gone, left = {}, 0, slots, {}, {}
-- look a little further than the limit: capped tasks may have to be passed over
local further = (probe == 1 and 500 or limit + 16)
local candidates = redis.call('ZRANGEBYSCORE', due, '-inf', ms(now), 'LIMIT', 0, further)
if probe == 1 then
  local clean, doubtful = {}, {}
  for _, id in ipairs(candidates) do
    local to = (redis.call('ZSCORE', ns .. ':suspects', id)
      or read('HEXISTS', work_key(id), 'doubts') == 1) and doubtful or clean
    to[#to + 1] = id
  end
  for _, id in ipairs(doubtful) do clean[#clean + 1] = id end
  candidates = clean
end
local caps = {}
for _, id in ipairs(candidates) do
  if #ids >= limit then break end
  local record = read('HEXISTS', task_key(id), 'task_id')
  local work = read('HMGET', work_key(id), 'token', 'cap', 'lapses')
  if record == 0 and redis.call('EXISTS', task_key(id)) == 0 then
    gone[#gone + 1] = id
  elseif not record or not work then
    aside[#aside + 1] = id
  elseif left_over(id) then
    left[#left + 1] = id
  else
    local cap, lapses = tonumber(work[2]) or slots, tonumber(work[3]) or 0
    if work[1] and not unsettled then
      if cap <= 1 then lapses = lapses + 1 end
      cap = math.max(1, math.floor(math.min(cap, slots) / 2))
    end
    local in_hand_then = in_hand + #ids + 1
    if in_hand_then <= math.min(cap, cap_now) then
      ids[#ids + 1] = id
      caps[id] = {cap, lapses, work[1]}
      cap_now = math.min(cap_now, cap)
    elseif cap < in_hand_then and held == 0 then
      held = cap
    end
  end
end

for _, id in ipairs(gone) do forget(id) end
for _, id in ipairs(aside) do set_aside(kind, id, now) end
for _, id in ipairs(left) do redis.call('ZREM', due, id) end
for _, id in ipairs(ids) do
  local cap = caps[id]
  if cap[3] and not unsettled then
    redis.call('HINCRBY', ns .. ':counters', 'leases_expired', 1)
  end
  was[id] = redis.call('ZSCORE', due, id)
  redis.call('ZADD', due, ms(now + lease), id)
  redis.call('HSET', work_key(id), 'token', token, 'owner', ARGV[9],
    'lapses', ms(cap[2]), 'cap', ms(cap[1]))
end
if #ids > 0 then
  local got = {}
  for _, id in ipairs(ids) do
    got[#got + 1] = id
    got[#got + 1] = was[id]
  end
  redis.call('RPUSH', claim, probe, unpack(got))
  redis.call('PEXPIRE', claim, lease)
  if rate then keep_rate(now, tokens - #ids, factor) end
  -- one prober at a time; should it die, the next one may try after a while
  if probe == 1 then redis.call('HSET', circuit, 'probe_at', ms(now + 45000)) end
end
return answer(ids, next_wait(), probe, held)
