-- Halves the fleet's rate after the upstream has throttled it, at most once a second.
-- ARGV: ns, rate, burst
local now = now_ms()
if once(ns .. ':said:throttle', 1000) then
  local _, factor = rate_tokens(now, tonumber(ARGV[2]), tonumber(ARGV[3]))
  keep_rate(now, 0, math.max(1 / 64, factor / 2))
end
return 'ok'
