-- Notes progress of a copy under a claim, and renews it. Invariant: a file's object key is fixed
-- by the first note ('key:<n>' is written once), before a byte is sent under it.
-- ARGV: ns, id, token, lease (ms), field ('' = only renew), value
-- Returns {'ok' | 'cancel' | 'lost', the value now in force, now}.
local id, field = ARGV[2], ARGV[5]
local now = now_ms()
local work = redis.call('HMGET', work_key(id), 'token', 'cancel')
if work[1] ~= ARGV[3] then
  count('stale_writes', 1)
  return {'lost', '', ms(now)}
end
local value = ARGV[6]
local kind = redis.call('ZSCORE', due_key('fetch'), id) and 'fetch' or 'copy'
redis.call('ZADD', due_key(kind), ms(now + tonumber(ARGV[4])), id)
if string.sub(field, 1, 4) == 'key:' then
  redis.call('HSETNX', work_key(id), field, value)
  value = redis.call('HGET', work_key(id), field)
elseif field ~= '' then
  redis.call('HSET', work_key(id), field, value)
  if string.sub(field, 1, 5) == 'file:' then usable('store', id, now) end
end
return {work[2] and 'cancel' or 'ok', value, ms(now)}
