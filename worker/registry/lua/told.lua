-- Saves the outcome of callbacks. Invariant: the record's time to live starts when every callback
-- is settled; a callback added meanwhile, or a retry, is never missed.
-- ARGV: ns, id, token, told (JSON), settled (1 or 0), delay (ms), callbacks (count), ttl (ms)
-- Returns 'ok' or 'lost'.
local id, token = ARGV[2], ARGV[3]
local owner = ownership(id, token)
if owner == 'done' then return 'ok' end
if owner == 'lost' or redis.call('EXISTS', task_key(id)) == 0 then return 'lost' end
local now = now_ms()
redis.call('HSET', task_key(id), 'told', ARGV[4])
redis.call('HDEL', work_key(id), 'cap', 'lapses')
settle(id, token)
if redis.call('HGET', work_key(id), 'callbacks') ~= ARGV[7] then
  redis.call('ZADD', due_key('tell'), ms(now), id)
elseif ARGV[5] == '1' then
  redis.call('ZREM', due_key('tell'), id)
  keep_for(id, now, tonumber(ARGV[8]))
else
  redis.call('ZADD', due_key('tell'), ms(now + tonumber(ARGV[6])), id)
end
return 'ok'
