-- Ends a claim with a step that is not final: writes fields and leaves the task, unclaimed, in
-- exactly one due set. Invariant: moving from one set to another is one step, which only the owner
-- takes; a task to be canceled goes to 'copy', where endings are written. The durations of a task
-- that is done are counted in the same step, once, by label. When there are many, all weights are
-- halved, so that old ones fade.
-- ARGV: ns, id, token, from kind, to kind, delay (ms), state ('' = as it is),
--       upstream calls, durations (histogram fields, separated by blanks), detection lag (ms),
--       1 if the upstream gave a usable answer about it else 0,
--       n, n record fields and values, work fields and values...
--       (a work value '' removes the field, and so does an empty last_error)
-- A look requested meanwhile makes the poll due at the look's place, unless this step is a fault or
-- a doubt: those keep their gaps.
-- Returns 'ok' or 'lost'.
local function learn(label, fields)
  local key = ns .. ':durations:' .. label
  for field in string.gmatch(fields, '%S+') do redis.call('HINCRBY', key, field, 8) end
  if redis.call('HINCRBY', key, 'count', 1) >= 512 then
    local kept = redis.call('HGETALL', key)
    for i = 1, #kept, 2 do
      local half = math.floor(tonumber(kept[i + 1]) / 2)
      if half > 0 then redis.call('HSET', key, kept[i], ms(half))
      else redis.call('HDEL', key, kept[i]) end
    end
  end
  redis.call('PEXPIRE', key, 604800000)
end

local id, token = ARGV[2], ARGV[3]
local owner = ownership(id, token)
if owner == 'done' then return 'ok' end
local state = redis.call('HGET', task_key(id), 'state')
if owner == 'lost' or not state then
  count('stale_writes', 1)
  return 'lost'
end
local now, to, delay = now_ms(), ARGV[5], tonumber(ARGV[6])
local record_end = 12 + tonumber(ARGV[12])
redis.call('HSET', task_key(id), 'updated_at', ms(now))
redis.call('HINCRBY', task_key(id), 'polls', ARGV[8])
for i = 13, record_end, 2 do
  if ARGV[i] == 'last_error' then note_error(id, ARGV[i + 1], now)
  else redis.call('HSET', task_key(id), ARGV[i], ARGV[i + 1]) end
end
write_work(id, record_end + 1, #ARGV)
if ARGV[7] ~= '' and ARGV[7] ~= state then
  to_state(id, state, ARGV[7], redis.call('HGET', task_key(id), 'submitted_at'))
end
local work = redis.call('HMGET', work_key(id), 'cancel', 'look', 'faults', 'doubts')
if work[2] then
  redis.call('HDEL', work_key(id), 'look')
  if to == 'poll' and not work[3] and not work[4] then
    delay = math.min(delay, math.max(0, tonumber(work[2]) - now))
  end
end
if work[1] then to, delay = 'copy', 0 end
redis.call('HDEL', work_key(id), 'cap', 'lapses')
count_calls(ARGV[8])
if ARGV[11] == '1' then usable('upstream', id, now) end
if ARGV[9] ~= '' then
  local known = redis.call('HMGET', task_key(id), 'label', 'polls')
  local label = known[1] or ''
  if not pcall(learn, label, ARGV[9]) then redis.call('DEL', ns .. ':durations:' .. label) end
  count('found', 1)
  count('found_calls', known[2])
  count('found_lag_ms', ARGV[10])
end
settle(id, token)
move_to(to, id, now + delay)
return 'ok'
