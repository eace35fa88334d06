-- Closes a circuit after a success; the upstream's rate ramps up from one tenth.
-- ARGV: ns, name
-- Returns 1 if it was open, else 0.
local open = redis.call('DEL', ns .. ':circuit:' .. ARGV[2])
if open == 1 and ARGV[2] == 'upstream' then keep_rate(now_ms(), 1, 0.1) end
return open
