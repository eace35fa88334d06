-- Opens a circuit, or keeps it open after a failed probe. Invariant: an open circuit lets one probe
-- through at a time, after 5 s, then after twice as long each time, at most 30 s.
-- ARGV: ns, name, kind, message, probe (1 if this was the probe)
-- Returns 1 if it was closed before, else 0.
local key, now = ns .. ':circuit:' .. ARGV[2], now_ms()
local gap = number(redis.call('HGET', key, 'gap'), 5000, 30000)
local first = not gap
if first then
  gap = 5000
  redis.call('HSET', key, 'opened_at', ms(now))
elseif ARGV[5] == '1' then
  gap = math.min(30000, gap * 2)
else
  return 0
end
redis.call('HSET', key, 'kind', ARGV[3], 'message', ARGV[4], 'gap', ms(gap),
  'probe_at', ms(now + gap))
return first and 1 or 0
