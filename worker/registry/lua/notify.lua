-- Has a final task told again, over every channel. Invariant: as after the ending, a callback has
-- a due entry until it is settled, and the record does not expire before; a telling under way is
-- void.
-- ARGV: ns, id
-- Returns 'ok', 'unknown', 'nobody' (nobody asked to be told) or the state that is not final.
local id = ARGV[2]
local state = redis.call('HGET', task_key(id), 'state')
if not state then return 'unknown' end
if state == 'waiting' or state == 'copying' then return state end
if tonumber(redis.call('HGET', work_key(id), 'callbacks') or 0) == 0 then return 'nobody' end
redis.call('HSET', task_key(id), 'told', '[]')
redis.call('HDEL', work_key(id), 'token', 'settled', 'cap', 'lapses')
redis.call('PERSIST', task_key(id))
redis.call('PERSIST', work_key(id))
redis.call('ZREM', ns .. ':expiring', id)
redis.call('ZADD', due_key('tell'), ms(now_ms()), id)
return 'ok'
