-- Renews claims. Invariant: only an unchanged token is renewed, however late; a lapsed time alone
-- lets others claim, but takes nothing away.
-- ARGV: ns, kind, token, lease (ms), id...
-- Returns for each id 'ok', 'cancel' (still ours; somebody asked to end it) or 'lost'.
local now, out = now_ms(), {}
for i = 5, #ARGV do
  local work = read('HMGET', work_key(ARGV[i]), 'token', 'cancel')
  if not work or work[1] ~= ARGV[3] then
    out[#out + 1] = 'lost'
  else
    stand_in(ARGV[2], ARGV[i], now + tonumber(ARGV[4]))
    out[#out + 1] = work[2] and 'cancel' or 'ok'
  end
end
return out
