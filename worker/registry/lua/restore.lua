-- Writes a final record back from its manifest, if there is none. Invariant: an existing record
-- never changes; there is no event and no callback.
-- ARGV: ns, id, ttl (ms), fields and values...
-- Returns 1 if it was written, else 0.
local id = ARGV[2]
if redis.call('EXISTS', task_key(id)) == 1 then return 0 end
for i = 4, #ARGV, 2 do redis.call('HSET', task_key(id), ARGV[i], ARGV[i + 1]) end
redis.call('HSET', task_key(id), 'told', '[]')
forget(id)
redis.call('HSET', work_key(id), 'callbacks', '0')
local record = redis.call('HMGET', task_key(id), 'state', 'finished_at')
redis.call('ZADD', index_key(record[1]), record[2], id)
keep_for(id, now_ms(), tonumber(ARGV[3]))
return 1
