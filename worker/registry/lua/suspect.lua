-- Notes that the upstream refused a call about one id, and judges by other ids whether the refusal
-- concerns all calls. Invariant: an id is only blamed if another id had a usable answer since its
-- last refusal; the upstream only if three ids were refused, over one second or more, without a
-- usable answer between.
-- A repetition with the same token returns the same verdict.
-- ARGV: ns, id, token
-- Returns 'id' (doubt this one), 'upstream' (doubt the service) or 'unknown'.
local suspects, now = ns .. ':suspects', now_ms()
local repeated = answer_before(ARGV[3])
if repeated then return repeated[1] end
local usable = tonumber(redis.call('HGET', ns .. ':services', 'upstream')) or 0
local before = tonumber(redis.call('ZSCORE', suspects, ARGV[2]))
redis.call('ZADD', suspects, ms(now), ARGV[2])
for _, id in ipairs(redis.call('ZRANGE', suspects, 0, -1001)) do redis.call('ZREM', suspects, id) end
redis.call('PEXPIRE', suspects, 86400000)
local since = redis.call('ZRANGEBYSCORE', suspects, '(' .. ms(usable), '+inf', 'WITHSCORES')
local verdict = 'unknown'
if before and usable > before then
  verdict = 'id'
elseif #since >= 6 and now - math.min(tonumber(since[2]), before or now) >= 1000 then
  verdict = 'upstream'
end
answered(ARGV[3], verdict)
return verdict
