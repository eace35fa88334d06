-- Hands claims back, unharmed: due at once (or after a delay), not counted as a crash.
-- Invariant: only the owner hands back.
-- ARGV: ns, kind, token, delay (ms), id...
-- Returns how many were still ours.
local now, count = now_ms(), 0
for i = 5, #ARGV do
  local id = ARGV[i]
  if ownership(id, ARGV[3]) == 'ok' then
    settle(id, ARGV[3])
    redis.call('ZADD', due_key(ARGV[2]), ms(now + tonumber(ARGV[4])), id)
    count = count + 1
  end
end
return count
