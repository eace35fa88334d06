-- Queues tasks that are in no due set. Invariant: every task that is not final is in 'poll', 'copy'
-- or 'fetch'; if another program has broken that, work in 'copy' decides what comes next.
-- Index entries without a record are dropped.
-- ARGV: ns, state ('waiting' or 'copying'), first rank, count
-- Returns {how many were checked, how many were queued}.
local first, count = tonumber(ARGV[3]), tonumber(ARGV[4])
local ids = redis.call('ZRANGE', index_key(ARGV[2]), first, first + count - 1)
local now, back = now_ms(), 0
for _, id in ipairs(ids) do
  if redis.call('EXISTS', task_key(id)) == 0 then
    forget(id)
  elseif not redis.call('ZSCORE', due_key('poll'), id)
    and not redis.call('ZSCORE', due_key('copy'), id)
    and not redis.call('ZSCORE', due_key('fetch'), id) then
    redis.call('ZADD', due_key('copy'), ms(now), id)
    back = back + 1
  end
end
return {#ids, back}
