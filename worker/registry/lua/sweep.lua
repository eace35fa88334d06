-- Removes index entries of expired records. Invariant: no index entry outlives its record by more
-- than a tick, and none is removed before it.
-- ARGV: ns, limit
-- Returns how many were checked.
local now = now_ms()
local ids = redis.call('ZRANGEBYSCORE', ns .. ':expiring', '-inf', ms(now), 'LIMIT', 0, ARGV[2])
for _, id in ipairs(ids) do
  if redis.call('EXISTS', task_key(id)) == 0 then
    for _, state in ipairs({'stored', 'partial', 'failed'}) do
      redis.call('ZREM', index_key(state), id)
    end
    redis.call('DEL', work_key(id))
    redis.call('ZREM', ns .. ':expiring', id)
  else
    local left = redis.call('PTTL', task_key(id))
    if left >= 0 then
      redis.call('ZADD', ns .. ':expiring', ms(now + left + 1), id)
    else
      redis.call('ZREM', ns .. ':expiring', id)
    end
  end
end
return #ids
