-- Sent before every script. ARGV[1] is the namespace; keys are derived from it and the task id, so
-- the scripts need a single node (or Sentinel), not Redis Cluster.
--
-- Shared rules. Time is Redis time, in milliseconds. JSON stays text and is never re-encoded here
-- (cjson turns [] into {} and rounds long integers). Scripts check everything before the first
-- write, since Lua does not roll back. A script that runs twice with one token answers the same.
local ns = ARGV[1]

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Redis' clock has stepped if it differs from the expected time by more than this (ms).
local clock_step = 2000

-- A number that Redis keeps as text, within bounds; `default` if the text is not a number ('nan'
-- included). So a value that another program has written never makes a task wait for ever.
local function number(text, least, most, default)
  local value = tonumber(text)
  if not value or value ~= value then return default end
  return math.max(least, math.min(most, value))
end
local latest_time = 1e15

local function ms(value)
  return string.format('%.0f', value)
end

local function task_key(id) return ns .. ':task:' .. id end
local function work_key(id) return ns .. ':work:' .. id end
local function due_key(kind) return ns .. ':due:' .. kind end
local function index_key(state) return ns .. ':index:' .. state end

-- Calls a command about one task. False if another program has overwritten its key: this must not
-- fail the whole batch. Raises any other error.
local function read(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then
    if string.find(answer.err, 'WRONGTYPE', 1, true) then return false end
    error(answer.err, 0)
  end
  return answer
end

-- Counts. A counter that something else has overwritten stops no task: it begins again.
local function count(name, by)
  local counters = ns .. ':counters'
  if type(redis.pcall('HINCRBY', counters, name, by)) ~= 'number' then
    redis.pcall('HDEL', counters, name)
  end
end

-- Whether nobody has had `true` for a key within the last `bound` ms. A key that lives for longer was
-- not written by this, or Redis' clock has stepped back.
local function once(key, bound)
  if redis.call('SET', key, '1', 'NX', 'PX', bound) then return true end
  local left = redis.call('PTTL', key)
  if left >= 0 and left <= bound then return false end
  redis.call('SET', key, '1', 'PX', bound)
  return true
end

-- When an open circuit lets its next probe through; nil if it is closed.
local function probe_time(circuit, now)
  local at = redis.call('HGET', circuit, 'probe_at')
  at = at and number(at, 0, latest_time, now)
  return at and (at <= now + 60000 and at or now) or nil
end

-- Whether `token` owns the task: 'ok'; 'done' if this token has already made its last move;
-- 'lost' if another claim or nothing owns it.
local function ownership(id, token)
  local work = read('HMGET', work_key(id), 'token', 'settled')
  if not work then return 'lost' end
  if work[1] == token then return 'ok' end
  if work[2] == token then return 'done' end
  return 'lost'
end

-- Writes notes about a task from ARGV[from .. to]: field, value, ...; a value '' removes the field.
local function write_work(id, from, to)
  for i = from, to, 2 do
    if ARGV[i + 1] == '' then redis.call('HDEL', work_key(id), ARGV[i])
    else redis.call('HSET', work_key(id), ARGV[i], ARGV[i + 1]) end
  end
end

-- Writes into the record why the last try failed, for people to read; '' removes it.
local function note_error(id, said, now)
  if said == '' then redis.call('HDEL', task_key(id), 'last_error', 'last_error_at')
  else redis.call('HSET', task_key(id), 'last_error', said, 'last_error_at', ms(now)) end
end

-- Notes when a service last gave a usable answer, and that the task's id is not suspect.
local function usable(service, id, now)
  redis.call('HSET', ns .. ':services', service, ms(now))
  if service == 'upstream' then redis.call('ZREM', ns .. ':suspects', id) end
end

-- Ends the claim, and keeps its token to recognise a repeated call.
local function settle(id, token)
  redis.call('HDEL', work_key(id), 'token')
  redis.call('HSET', work_key(id), 'settled', token)
end

-- Puts the task in one due set only, also if a cancel or the search for lost tasks has moved it
-- while its owner was late.
local function move_to(kind, id, at)
  for _, other in ipairs({'poll', 'copy', 'fetch', 'tell'}) do
    if other ~= kind then redis.call('ZREM', due_key(other), id) end
  end
  redis.call('ZADD', due_key(kind), ms(at), id)
end

-- A due time with a fraction marks an overdue task in line for its turn (claim.lua). Only claims
-- write one, so any other change of the due time takes the task out of the line.
local function in_line(score) return score % 1 ~= 0 end

-- When a task is due, by its score; a task in line has been due for some time.
local function due_since(score, now) return in_line(score) and math.min(score, now) or score end

local function to_state(id, from, to, score)
  redis.call('ZREM', index_key(from), id)
  redis.call('ZADD', index_key(to), score, id)
  redis.call('HSET', task_key(id), 'state', to)
end

-- Removes a task from a due set because another program has overwritten its keys, so that it does
-- not hold up others. The search for lost tasks adds it again once a minute, in case someone has
-- repaired it.
local function set_aside(kind, id, now)
  redis.call('ZREM', due_key(kind), id)
  redis.call('ZADD', ns .. ':aside', ms(now), id)
  redis.call('ZREMRANGEBYSCORE', ns .. ':aside', '-inf', ms(now - 86400000))
  count('set_aside', 1)
end

-- Whether a final task ended later than `bound` (ms); false without a bound.
local function ended_after(id, bound)
  local ended = bound and tonumber(redis.call('HGET', task_key(id), 'finished_at'))
  return ended and ended > tonumber(bound)
end

-- Removes all traces of a record that is gone (expired, or deleted by another program).
local function forget(id)
  redis.call('DEL', work_key(id))
  redis.call('ZREM', ns .. ':expiring', id)
  redis.call('ZREM', ns .. ':suspects', id)
  for _, kind in ipairs({'poll', 'copy', 'fetch', 'tell'}) do redis.call('ZREM', due_key(kind), id) end
  for _, state in ipairs({'waiting', 'copying', 'stored', 'partial', 'failed'}) do
    redis.call('ZREM', index_key(state), id)
  end
end

-- A final task is kept for ttl milliseconds from now (0: for ever); 'expiring' lets the sweep
-- remove its index entries afterwards.
local function keep_for(id, now, ttl)
  if ttl > 0 then
    redis.call('PEXPIRE', task_key(id), ttl)
    redis.call('PEXPIRE', work_key(id), ttl)
    redis.call('ZADD', ns .. ':expiring', ms(now + ttl), id)
  end
end

-- The fleet's rate: tokens accrue at rate * factor a second, up to burst. Throttling halves factor,
-- which recovers by a sixtieth a second. Returns the present tokens and factor.
local function rate_tokens(now, rate, burst)
  local kept = redis.call('HMGET', ns .. ':rate', 'tokens', 'at', 'factor')
  local factor = number(kept[3], 1 / 64, 1, 1)
  local at = number(kept[2], 0, latest_time, now)
  if at > now then redis.call('HSET', ns .. ':rate', 'at', ms(now)) end
  local passed = math.max(0, now - at) / 1000
  local tokens = math.min(burst, number(kept[1], -2 * burst, burst, burst) + passed * rate * factor)
  factor = math.min(1, factor + passed / 60)
  return tokens, factor
end

local function keep_rate(now, tokens, factor)
  redis.call('HSET', ns .. ':rate', 'tokens', string.format('%.6f', tokens),
    'at', ms(now), 'factor', string.format('%.6f', factor))
  redis.call('PEXPIRE', ns .. ':rate', 600000)
end

-- When the next look may be due. A quarter of the fleet's rate goes to looks: each is due four
-- calls after the one before, so that a flood of looks only delays looks. Nil if that is later than
-- any planned poll.
local look_horizon = 66000
local function look_place(now)
  local at = math.max(now, tonumber(redis.call('HGET', ns .. ':rate', 'looks')) or 0)
  return at <= now + look_horizon and at or nil
end

local function take_look_place(at, rate, factor)
  redis.call('HSET', ns .. ':rate', 'looks', ms(at + math.ceil(4000 / (rate * factor))))
  redis.call('PEXPIRE', ns .. ':rate', 600000)
end

-- The earlier answer to this token, as kept by `answered`; nil for the first call. For scripts
-- whose repetition by the client library would otherwise see the first run's writes.
local function answer_before(token)
  local before = redis.call('LRANGE', ns .. ':claim:' .. token, 0, -1)
  return before[1] and before or nil
end

local function answered(token, ...)
  redis.call('RPUSH', ns .. ':claim:' .. token, ...)
  redis.call('PEXPIRE', ns .. ':claim:' .. token, 60000)
end

local function count_calls(calls)
  if calls ~= '0' then count('calls', calls) end
end
