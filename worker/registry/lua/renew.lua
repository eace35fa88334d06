-- Renews claims. Invariant: a claim is renewed, however late, if its token is unchanged: a lapsed
-- lease lets others claim, but does not end the claim.
-- ARGV: ns, kind, token, lease (ms), id...
-- Returns for each id 'ok', 'cancel' (still ours; cancellation was requested) or 'lost'.
local now, out = now_ms(), {}
for i = 5, #ARGV do
  local work = read('HMGET', work_key(ARGV[i]), 'token', 'cancel')
  if not work or work[1] ~= ARGV[3] then
    out[#out + 1] = 'lost'
  else
    move_to(ARGV[2], ARGV[i], now + tonumber(ARGV[4]))
    out[#out + 1] = work[2] and 'cancel' or 'ok'
  end
end
return out
