-- Hands claims back, unharmed: due at once (or after a delay), not counted as a crash.
-- Invariant: only the owner hands back.
-- ARGV: ns, kind, token, delay (ms), id...
-- Returns how many were ours to the last, those given up before (a repeated call) included.
local now, count = now_ms(), 0
for i = 5, #ARGV do
  local id = ARGV[i]
  local owner = ownership(id, ARGV[3])
  if owner == 'ok' then
    settle(id, ARGV[3])
    stand_in(ARGV[2], id, now + tonumber(ARGV[4]))
  end
  if owner ~= 'lost' then count = count + 1 end
end
return count
