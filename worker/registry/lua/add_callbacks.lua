-- Adds callbacks to a known task: replaces its options if nobody has changed them meanwhile.
-- Invariant: a callback that is in the options of a final task has a due entry in 'tell' until
-- it is settled, and the record does not expire before.
-- ARGV: ns, id, options as read, options to write, callbacks (count)
-- Returns 'ok', 'changed' (read again) or 'unknown'.
local id = ARGV[2]
local state = redis.call('HGET', task_key(id), 'state')
if not state then return 'unknown' end
if redis.call('HGET', task_key(id), 'options') ~= ARGV[3] then return 'changed' end
redis.call('HSET', task_key(id), 'options', ARGV[4])
redis.call('HSET', work_key(id), 'callbacks', ARGV[5])
if state == 'stored' or state == 'partial' or state == 'failed' then
  redis.call('PERSIST', task_key(id))
  redis.call('PERSIST', work_key(id))
  redis.call('ZREM', ns .. ':expiring', id)
  redis.call('ZADD', due_key('tell'), 'NX', ms(now_ms()), id)
end
return 'ok'
