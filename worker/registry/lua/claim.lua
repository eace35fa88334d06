-- Claims due tasks: each gets the fresh token, and its due time moves to now + lease.
-- Invariant: a claim removes nothing, so an abandoned task becomes due again by itself; no more is
-- claimed than slots and rate allow, so that no claimed task waits for its turn.
-- Fair turns: while more is due than may be claimed, due tasks wait in one line for each label, and
-- labels take turns. Lines only define an order: a task in line is also in the due set, a minute
-- ahead, where it becomes due by itself if its line is lost. Invariant: no overdue label has two
-- turns while another of the same weight waits for one; without a rate, turns go first to the label
-- that uses the fewest slots here. See docs/architecture.md.
-- Crash caps: a due task that still has a token has a lapsed claim. Each lapse halves the number of
-- jobs that a process may run together with the task; only a lapse at cap 1, alone, is counted.
-- An open circuit lets one claim through when its probe is due. A task that may itself be the cause
-- (the upstream refused it, or gave an unusable answer) proves nothing: it is skipped while another
-- one is due. Such tasks take turns, since each try makes them due later.
-- After a clock step, nothing is claimed before clock.lua has run. For two leases after it, lapses
-- do not count.
-- ARGV: ns, kind, token, limit (0: only put due tasks in line), in hand, slots, lease (ms), circuit,
--       owner, rate ('' = none), burst, the time that the worker expects (ms; '' = unknown),
--       then, without a rate, for each label in hand: label, its share of the slots
-- Returns {now, wait (ms until the next claim; -1: the clock has stepped), probe, held cap,
--          behind (ms that all overdue tasks take at the present rate; 0 without a rate),
--          {id, {record...}, {work...}, due time before the claim, behind (ms, of its label)}...}
-- A task whose keys have a wrong type is set aside, and is in the answer without a record.
local kind, token = ARGV[2], ARGV[3]
local limit, in_hand, slots = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local lease, circuit = tonumber(ARGV[7]), ns .. ':circuit:' .. ARGV[8]
local rate, burst = tonumber(ARGV[10]), tonumber(ARGV[11])
local due, claim = due_key(kind), ns .. ':claim:' .. token
local turn, turns = ns .. ':turn:' .. kind, ns .. ':turns:' .. kind
local now = now_ms()
-- Limits of one claim: tasks put in line; tasks of a label skipped because of their caps; tasks
-- skipped because they have moved.
local most_filed, most_passed, most_gone = 500, 16, 500
-- A task in line becomes due by itself after `parked`. Lines expire later than turns, so that a
-- label with a turn always has its line.
local parked, turns_live, line_lives = 60000, 3600000, 7200000
-- Priority shifts a task by so much within its label: the tasks before one with score s were due
-- before s + shift (2 * shift, from high to low).
local shift = 120000

local was, aside = {}, {}
local tokens, factor
if rate then tokens, factor = rate_tokens(now, rate, burst) end

local function line_key(label) return ns .. ':overdue:' .. kind .. ':' .. label end

local function waiting_in_line() return number(redis.call('HGET', turn, 'waiting'), 0, 1e9, 0) end

local function answer(ids, wait, probe, held)
  local overdue, labels, price, known = 0, 0, 0, {}
  if rate then
    overdue = waiting_in_line() + redis.call('ZCOUNT', due, '-inf', ms(now))
    labels, price = redis.call('ZCARD', turns), 1000 / (rate * factor)
  end
  local behind = overdue * price
  -- the time that the label's tasks take at its share, at most the time that all take
  local function behind_of(label)
    if not known[label] then
      local mine = rate and read('ZCARD', line_key(label)) or 0
      known[label] = math.min(behind, mine * labels * price)
    end
    return known[label]
  end
  local out = {ms(now), ms(wait), probe, held, ms(behind)}
  for _, id in ipairs(ids) do
    local record, label = redis.call('HGETALL', task_key(id)), ''
    for i = 1, #record, 2 do
      if record[i] == 'label' then label = record[i + 1] end
    end
    out[#out + 1] = {id, record, redis.call('HGETALL', work_key(id)), was[id], ms(behind_of(label))}
  end
  for _, id in ipairs(aside) do out[#out + 1] = {id, {}, {}, ms(now)} end
  return out
end

local function next_wait()
  if waiting_in_line() > 0 then return 0 end
  local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
  if not first[2] then return 60000 end
  return math.max(0, tonumber(first[2]) - now)
end

-- repeated by the client library: the same tasks, as far as they are still ours
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
local latest, expected = number(clock[1], 0, latest_time), tonumber(ARGV[12])
if (latest and now < latest - clock_step)
  or (expected and math.abs(now - expected) > clock_step) then
  return {ms(now), '-1', 0, 0, '0'}
end
redis.call('HSET', ns .. ':clock', 'at', ms(now))
local unsettled = now - number(clock[2], 0, now, 0) < 2 * lease

local probe = 0
local probe_at = probe_time(circuit, now)
if probe_at then
  if now < probe_at then return answer({}, probe_at - now, 0, 0) end
  probe, limit = 1, math.min(limit, 1)
end

local short = rate and tokens < 1
if rate then limit = math.min(limit, math.max(0, math.floor(tokens))) end

-- Whether an old worker without 'fetch' has left the entry: it also added the task to 'copy', or
-- ended it.
local function left_over(id)
  if kind == 'copy' then return redis.call('ZSCORE', due_key('fetch'), id) end
  local state = kind == 'fetch' and read('HGET', task_key(id), 'state')
  return state and state ~= 'waiting' and state ~= 'copying'
end

local ids, held, cap_now, gone, left, caps = {}, 0, slots, {}, {}, {}
-- Selects a task for this claim if its cap allows. Returns 'ours', 'held' or 'gone'.
local function take(id, since)
  local record = read('HEXISTS', task_key(id), 'task_id')
  local work = read('HMGET', work_key(id), 'token', 'cap', 'lapses')
  if record == 0 and redis.call('EXISTS', task_key(id)) == 0 then
    gone[#gone + 1] = id
    return 'gone'
  elseif not record or not work then
    aside[#aside + 1] = id
    return 'gone'
  elseif left_over(id) then
    left[#left + 1] = id
    return 'gone'
  end
  local cap, lapses = tonumber(work[2]) or slots, tonumber(work[3]) or 0
  if work[1] and not unsettled then
    if cap <= 1 then lapses = lapses + 1 end
    cap = math.max(1, math.floor(math.min(cap, slots) / 2))
  end
  local in_hand_then = in_hand + #ids + 1
  if in_hand_then <= math.min(cap, cap_now) then
    ids[#ids + 1] = id
    caps[id], was[id] = {cap, lapses, work[1]}, ms(since)
    cap_now = math.min(cap_now, cap)
    return 'ours'
  end
  if cap < in_hand_then and held == 0 then held = cap end
  return 'held'
end

-- Priority as 0 (high), 1 or 2 (low). It is the fraction of a place in line.
local function rank_of(options)
  local rank = 1
  if options and string.find(options, '"priority"', 1, true) then
    local fine, found = pcall(cjson.decode, options)
    rank = fine and type(found) == 'table' and ({high = 0, low = 2})[found.priority] or 1
  end
  return rank
end
local function rank_at(place) return (place % 1) * 4 end
local function place_at(since, rank) return since + (rank - 1) * shift + rank / 4 end
local function since_at(place) return math.floor(place) - (rank_at(place) - 1) * shift end
-- the cost of a turn, by priority
local function cost(rank) return ({0.5, 1, 2})[rank + 1] end

local line = redis.call('HMGET', turn, 'at', 'waiting', 'came')
local at, waiting = number(line[1], 0, 1e12, 0), number(line[2], 0, 1e9, 0)
local came = number(line[3], 0, 10000, 0)

-- ZADD, even if another program has overwritten the line.
local function to_line(label, places)
  if #places < 2 then return end
  local added = read('ZADD', line_key(label), unpack(places))
  if not added then
    redis.call('DEL', line_key(label))
    added = redis.call('ZADD', line_key(label), unpack(places))
  end
  waiting = waiting + added
end

-- Puts tasks in line, given as id, score, ... A task that was in line and has not moved keeps its
-- place.
local function file(found)
  local labels, fresh, kept, later = {}, {}, {}, {}
  for i = 1, #found, 2 do
    local id, score = found[i], tonumber(found[i + 1])
    local known = read('HMGET', task_key(id), 'label', 'options') or {}
    local label = known[1] or ''
    local rank = rank_of(known[2])
    if not fresh[label] then
      labels[#labels + 1] = {label, rank}
      fresh[label], kept[label] = {}, {'NX'}
    end
    local mine = (in_line(score) and kept or fresh)[label]
    mine[#mine + 1] = string.format('%.2f', place_at(math.floor(score), rank))
    mine[#mine + 1] = id
    later[#later + 1] = string.format('%.1f', now + parked + 0.5)
    later[#later + 1] = id
  end
  for _, each in ipairs(labels) do
    local label, rank = unpack(each)
    if not redis.call('ZSCORE', turns, label) then
      redis.call('DEL', line_key(label))
      -- a little before at + cost: a label with exactly that tag has had its turn. Of two labels
      -- that come at the same `at`, the first goes first.
      came = (came + 1) % 10000
      local place = cost(rank) * (0.999 + came / 2e7)
      redis.call('ZADD', turns, string.format('%.17g', at + place), label)
    end
    to_line(label, fresh[label])
    to_line(label, kept[label])
    redis.call('PEXPIRE', line_key(label), line_lives)
  end
  redis.call('ZADD', due, unpack(later))
end

-- Claims from the lines by self-clocked fair queueing: the label with the least tag has its turn.
-- Its next tag is `at`, the last tag served, plus the cost of its next task. A task that has moved
-- since it was put in line is dropped from the line.
local function serve()
  local load, loaded, passed, off, looks = {}, 0, {}, {}, limit + most_gone
  for i = 13, #ARGV, 2 do
    load[ARGV[i]], loaded = tonumber(ARGV[i + 1]), loaded + 1
  end
  while #ids < limit and looks > 0 and (#ids == 0 or in_hand + #ids < cap_now) do
    looks = looks - 1
    -- as many more as may be skipped
    local next_turns = redis.call('ZRANGE', turns, 0, loaded, 'WITHSCORES')
    local label, tag
    for i = 1, #next_turns, 2 do
      local name = next_turns[i]
      if not off[name] and (not label or (load[name] or 0) < (load[label] or 0)) then
        label, tag = name, tonumber(next_turns[i + 1])
      end
    end
    if not label then break end
    local first = passed[label] or 0
    local found = read('ZRANGE', line_key(label), first, first + 1, 'WITHSCORES') or {}
    local id, place = found[1], tonumber(found[2])
    local score = id and tonumber(redis.call('ZSCORE', due, id))
    local said = 'gone'
    -- a task whose record was lost and restored may be in two lines
    if score and in_line(score) and not caps[id] then said = take(id, since_at(place)) end
    if not id and first == 0 then
      redis.call('ZREM', turns, label)
    elseif not id or said == 'held' then
      passed[label] = first + 1
      if not id or first >= most_passed then
        off[label] = true
        if not load[label] then loaded = loaded + 1 end
      end
    else
      waiting = waiting - redis.call('ZREM', line_key(label), id)
      if said == 'ours' then
        at = math.max(at, tag)
        if first > 0 or found[3] then
          local rank = rank_at(tonumber(found[4]) or place)
          redis.call('ZADD', turns, string.format('%.17g', at + cost(rank)), label)
        else
          redis.call('ZREM', turns, label)
        end
        if not rate then
          if not load[label] then loaded = loaded + 1 end
          load[label] = (load[label] or 0) + cost(rank_at(place))
        end
      end
    end
  end
end

local more = false
if probe == 1 then
  -- tasks in line have waited longer
  local candidates, labels = {}, redis.call('ZRANGE', turns, 0, most_gone - 1)
  for _, label in ipairs(labels) do
    local last = math.ceil(most_gone / #labels) - 1
    for _, id in ipairs(read('ZRANGE', line_key(label), 0, last) or {}) do
      local score = tonumber(redis.call('ZSCORE', due, id))
      if score and in_line(score) then candidates[#candidates + 1] = id end
    end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', ms(now), 'LIMIT', 0, most_gone)) do
    candidates[#candidates + 1] = id
  end
  local clean, doubtful = {}, {}
  for _, id in ipairs(candidates) do
    local to = (redis.call('ZSCORE', ns .. ':suspects', id)
      or read('HEXISTS', work_key(id), 'doubts') == 1) and doubtful or clean
    to[#to + 1] = id
  end
  for _, id in ipairs(doubtful) do clean[#clean + 1] = id end
  for _, id in ipairs(clean) do
    if #ids >= limit then break end
    if not caps[id] then take(id, due_since(tonumber(redis.call('ZSCORE', due, id)), now)) end
  end
else
  local found = redis.call('ZRANGEBYSCORE', due, '-inf', ms(now), 'WITHSCORES', 'LIMIT', 0, limit + 1)
  if waiting == 0 and #found <= 2 * limit then
    for i = 1, #found, 2 do take(found[i], math.floor(tonumber(found[i + 1]))) end
  else
    found = redis.call('ZRANGEBYSCORE', due, '-inf', ms(now), 'WITHSCORES', 'LIMIT', 0, most_filed)
    more = #found == 2 * most_filed
    if #found > 0 then file(found) end
    serve()
    if redis.call('ZCARD', turns) == 0 then
      redis.call('DEL', turn)
    else
      redis.call('HSET', turn, 'at', string.format('%.17g', at), 'waiting', ms(math.max(0, waiting)),
        'came', ms(came))
      redis.call('PEXPIRE', turn, turns_live)
      redis.call('PEXPIRE', turns, turns_live)
    end
  end
end

for _, id in ipairs(gone) do forget(id) end
for _, id in ipairs(aside) do set_aside(kind, id, now) end
for _, id in ipairs(left) do redis.call('ZREM', due, id) end
for _, id in ipairs(ids) do
  local cap = caps[id]
  if cap[3] and not unsettled then
    count('leases_expired', 1)
  end
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
  -- one probe at a time; if its worker dies, the next may go after 45 s
  if probe == 1 then redis.call('HSET', circuit, 'probe_at', ms(now + 45000)) end
end
local wait = next_wait()
if short then wait = math.max(wait, math.ceil((1 - tokens) * 1000 / (rate * factor))) end
-- tasks not in line yet may belong to the label with the next turn
if more then wait = math.min(wait, 25) end
return answer(ids, wait, probe, held)
