-- Reserves one upstream call outside the polls (a fresh address for a file). Invariant: the whole
-- fleet stays under its rate; copies may borrow at most one burst from the polls. While the circuit
-- is open, one call is let through when a probe is due: there may be no poll that could probe.
-- A repetition with the same token takes no other call.
-- ARGV: ns, rate, burst, token
-- Returns {the wait (ms) before the call may be made, 1 if it may not be made else 0,
--          1 if the call is the circuit's probe else 0}.
local repeated = answer_before(ARGV[4])
if repeated then return {repeated[1], tonumber(repeated[2]), tonumber(repeated[3])} end
local circuit = ns .. ':circuit:upstream'
local now, rate, burst = now_ms(), tonumber(ARGV[2]), tonumber(ARGV[3])
local probe_at = probe_time(circuit, now)
if probe_at and now < probe_at then return {ms(math.max(1000, probe_at - now)), 1, 0} end
local tokens, factor = rate_tokens(now, rate, burst)
if tokens <= -burst then return {ms(math.ceil(-tokens * 1000 / (rate * factor))), 1, 0} end
tokens = tokens - 1
keep_rate(now, tokens, factor)
if probe_at then redis.call('HSET', circuit, 'probe_at', ms(now + 45000)) end
local wait = ms(math.ceil(math.max(0, -tokens) * 1000 / (rate * factor)))
answered(ARGV[4], wait, 0, probe_at and 1 or 0)
return {wait, 0, probe_at and 1 or 0}
