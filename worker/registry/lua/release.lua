-- Releases claims: the tasks are due at once, or after a delay, which no look shortens. A release does
-- not count as a crash. It also writes the facts that the work has not saved yet.
-- Invariant: only the owner releases; a call to the upstream is counted once.
-- ARGV: ns, kind, token, delay (ms), then for each task: id, upstream calls, the error ('' =
--       nothing), n, n work fields and values (a value '' removes the field)
-- Returns how many claims were still ours, including those released before (a repeated call).
local now, count, i = now_ms(), 0, 5
while i <= #ARGV do
  local id, calls, last = ARGV[i], ARGV[i + 1], i + 3 + tonumber(ARGV[i + 3])
  local owner = ownership(id, ARGV[3])
  if owner == 'ok' then
    if redis.call('EXISTS', task_key(id)) == 1 then
      if calls ~= '0' then redis.call('HINCRBY', task_key(id), 'polls', calls) end
      if ARGV[i + 2] ~= '' then note_error(id, ARGV[i + 2], now) end
    end
    count_calls(calls)
    write_work(id, i + 4, last)
    settle(id, ARGV[3])
    local at = now + tonumber(ARGV[4])
    if at > now then redis.call('HSET', work_key(id), 'held', ms(at)) end
    move_to(ARGV[2], id, at)
  end
  if owner ~= 'lost' then count = count + 1 end
  i = last + 1
end
return count
