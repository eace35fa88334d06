-- Reserves one upstream call outside the polls (a fresh address for a file). Invariant: the fleet
-- as a whole stays under its rate; copies may borrow one burst from the polls, no more.
-- ARGV: ns, rate, burst
-- Returns {the wait (ms) before the call may be made, 1 if the circuit is open else 0}.
local probe_at = tonumber(redis.call('HGET', ns .. ':circuit:upstream', 'probe_at'))
local now, rate, burst = now_ms(), tonumber(ARGV[2]), tonumber(ARGV[3])
if probe_at then return {ms(math.max(1000, probe_at - now)), 1} end
local tokens, factor = rate_tokens(now, rate, burst)
if tokens <= -burst then return {ms(math.ceil(-tokens * 1000 / (rate * factor))), 1} end
tokens = tokens - 1
keep_rate(now, tokens, factor)
return {ms(math.ceil(math.max(0, -tokens) * 1000 / (rate * factor))), 0}
