-- Requests a task's cancellation. Invariant: a claimed task is only flagged, and its owner acts on that;
-- an unclaimed or lapsed one is due at once in 'copy', where endings are written.
-- ARGV: ns, id, until (ms; optional)
-- Returns 'ok', 'unknown', 'changed' (its run began after `until`) or its final state.
local id = ARGV[2]
local state = redis.call('HGET', task_key(id), 'state')
if not state then return 'unknown' end
if state ~= 'waiting' and state ~= 'copying' then return state end
local began = tonumber(redis.call('HGET', work_key(id), 'asked_from'))
if ARGV[3] and began and began > tonumber(ARGV[3]) then return 'changed' end
local now = now_ms()
local claimed = false
if redis.call('HEXISTS', work_key(id), 'token') == 1 then
  local due
  for _, kind in ipairs({'poll', 'copy', 'fetch'}) do
    due = due or redis.call('ZSCORE', due_key(kind), id)
  end
  claimed = due and due_since(tonumber(due), now) > now
end
redis.call('HSET', work_key(id), 'cancel', '1')
if not claimed then
  redis.call('ZREM', due_key('poll'), id)
  redis.call('ZREM', due_key('fetch'), id)
  redis.call('ZADD', due_key('copy'), ms(now), id)
end
return 'ok'
