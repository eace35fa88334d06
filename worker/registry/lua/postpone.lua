-- After an inconclusive probe: the circuit stays open, and the next probe comes after the same gap.
-- ARGV: ns, name
local key = ns .. ':circuit:' .. ARGV[2]
local gap = redis.call('HGET', key, 'gap')
if gap then redis.call('HSET', key, 'probe_at', ms(now_ms() + number(gap, 0, 30000, 5000))) end
return 'ok'
