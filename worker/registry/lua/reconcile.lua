-- Queues tasks that are in no due set. Invariant: every task that is not final is in 'poll', 'copy'
-- or 'fetch', at a time that comes; if another program has broken that, work in 'copy' decides what
-- comes next.
-- Index entries without a record are dropped.
-- ARGV: ns, state ('waiting' or 'copying'), first rank, count
-- Returns {how many were checked, how many were queued}.
local first, count = tonumber(ARGV[3]), tonumber(ARGV[4])
local ids = redis.call('ZRANGE', index_key(ARGV[2]), first, first + count - 1)
local now, back = now_ms(), 0
local longest = 172800000  -- twice the longest lease, which is longer than any wait
for _, id in ipairs(ids) do
  if redis.call('EXISTS', task_key(id)) == 0 then
    forget(id)
  else
    local due = redis.call('ZSCORE', due_key('poll'), id) or redis.call('ZSCORE', due_key('copy'), id)
      or redis.call('ZSCORE', due_key('fetch'), id)
    if not due or tonumber(due) > now + longest then
      move_to('copy', id, now)
      back = back + 1
    end
  end
end
return {#ids, back}
