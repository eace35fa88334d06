-- A worker's tick, with its reports about the services since the last one. Invariant: for each
-- service the newest usable answer, and the first and last trouble after it, are kept; a repeated
-- call changes nothing. After a pause without reports, trouble starts over. Only failing webhook
-- hosts are kept, 200 at most.
-- ARGV: ns, worker, its version, then for each service or '@host' of a webhook: its name, the ages
--       (ms; '' = never) of the last usable answer and the first and last trouble since, the error
local now, services, hosts = now_ms(), ns .. ':services', ns .. ':webhooks'
local workers, versions = ns .. ':workers', ns .. ':versions'
redis.call('ZADD', workers, ms(now), ARGV[2])
redis.call('ZREMRANGEBYSCORE', workers, '-inf', ms(now - 3600000))
redis.call('HSET', versions, ARGV[2], ARGV[3])
redis.call('PEXPIRE', versions, 3600000)
local named = redis.call('HKEYS', versions)
if #named > redis.call('ZCARD', workers) then
  for _, name in ipairs(named) do
    if not redis.call('ZSCORE', workers, name) then redis.call('HDEL', versions, name) end
  end
end
redis.call('HSET', services, 'redis', ms(now))  -- it takes writes

local function time(age) return age ~= '' and now - tonumber(age) or nil end

local function note(name, well, first, last, said)
  local kept = redis.call('HMGET', services, name, name .. ':since', name .. ':at')
  local known, since, at = tonumber(kept[1]), tonumber(kept[2]), tonumber(kept[3])
  if well and not (known and known >= well) then
    known = well
    redis.call('HSET', services, name, ms(well))
  end
  if not last then return end
  -- earlier trouble is outdated (core/services.py)
  local pause = (name == 'webhooks' or name == 'broker:replies') and 4000000 or 300000
  if at and (known and at <= known or first - at >= pause) then since, at = nil, nil end
  redis.call('HSET', services, name .. ':since', ms(math.min(since or first, first)))
  if not at or last >= at then
    redis.call('HSET', services, name .. ':at', ms(last), name .. ':said', said)
  end
end

local function note_host(host, well, first, last, said)
  local since, at = string.match(redis.call('HGET', hosts, host) or '', '^(%d+) (%d+) ')
  since, at = tonumber(since), tonumber(at)
  if at and well and well >= at then
    redis.call('HDEL', hosts, host)
    since, at = nil, nil
  end
  if not last or (at and at > last) then return end
  if at and first - at >= 50000000 then since = nil end
  local kept, oldest, name = redis.call('HGETALL', hosts), nil, nil
  if not at and #kept >= 400 then
    for i = 1, #kept, 2 do
      local seen = tonumber(string.match(kept[i + 1], '^%d+ (%d+) ')) or 0
      if not oldest or seen < oldest then oldest, name = seen, kept[i] end
    end
    redis.call('HDEL', hosts, name)
  end
  redis.call('HSET', hosts, host, ms(math.min(since or first, first)) .. ' ' .. ms(last) .. ' ' .. said)
  redis.call('PEXPIRE', hosts, 345600000)  -- no webhook is tried for longer
end

for i = 4, #ARGV, 5 do
  local name, well, first, last = ARGV[i], time(ARGV[i + 1]), time(ARGV[i + 2]), time(ARGV[i + 3])
  if string.sub(name, 1, 1) == '@' then note_host(string.sub(name, 2), well, first, last, ARGV[i + 4])
  else note(name, well, first, last, ARGV[i + 4]) end
end
return 'ok'
