-- Calls all callbacks of a final task again. Invariant: as after the ending, a callback has a due
-- entry until it is settled, and the record does not expire before; a delivery under way is void.
-- ARGV: ns, id, until (ms; optional)
-- Returns 'ok', 'unknown', 'nobody' (no callback is registered), 'changed' (ended after `until`) or the
-- state that is not final. With `until`, a task that was notified since then does not change: 'ok'.
local id = ARGV[2]
local state = redis.call('HGET', task_key(id), 'state')
if not state then return 'unknown' end
if state == 'waiting' or state == 'copying' then return state end
if tonumber(redis.call('HGET', work_key(id), 'callbacks') or 0) == 0 then return 'nobody' end
local now = now_ms()
if ARGV[3] then
  if ended_after(id, ARGV[3]) then return 'changed' end
  local notified = tonumber(redis.call('HGET', work_key(id), 'notified'))
  if notified and notified >= tonumber(ARGV[3]) and notified <= now then return 'ok' end
  redis.call('HSET', work_key(id), 'notified', ms(now))
end
redis.call('HSET', task_key(id), 'told', '[]')
redis.call('HDEL', work_key(id), 'token', 'settled', 'cap', 'lapses')
redis.call('PERSIST', task_key(id))
redis.call('PERSIST', work_key(id))
redis.call('ZREM', ns .. ':expiring', id)
redis.call('ZADD', due_key('tell'), ms(now), id)
return 'ok'
