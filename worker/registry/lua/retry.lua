-- Starts run n + 1 of a failed or partial task. Invariant: only this script leaves a final state;
-- the old run's claims and callbacks are void, its stored files are kept, and nothing expires
-- meanwhile.
-- ARGV: ns, id, token of this request, default deadline (ms), deadline of the task (ms, '' = default),
--       until (ms; optional)
-- Returns 'ok', 'unknown', 'changed' (ended after `until`) or the state that cannot be retried.
local id = ARGV[2]
local state = redis.call('HGET', task_key(id), 'state')
if not state then return 'unknown' end
if redis.call('HGET', work_key(id), 'retried') == ARGV[3] then return 'ok' end
if state ~= 'failed' and state ~= 'partial' then return state end
if ended_after(id, ARGV[6]) then return 'changed' end
local now = now_ms()
redis.call('PERSIST', task_key(id))
redis.call('PERSIST', work_key(id))
redis.call('ZREM', ns .. ':expiring', id)
redis.call('ZREM', due_key('tell'), id)
redis.call('HINCRBY', task_key(id), 'run', 1)
redis.call('HSET', task_key(id), 'reason', '', 'error', '', 'finished_at', '', 'told', '[]',
  'updated_at', ms(now))
redis.call('HDEL', task_key(id), 'files', 'result', 'manifest', 'restored')
note_error(id, '', now)
local work = redis.call('HKEYS', work_key(id))
for _, field in ipairs(work) do
  if string.sub(field, 1, 4) == 'try:' or string.sub(field, 1, 5) == 'lost:' then
    redis.call('HDEL', work_key(id), field)
  end
end
redis.call('HDEL', work_key(id), 'token', 'settled', 'cap', 'lapses', 'cancel', 'ending',
  'succeeded_at', 'seen_at', 'doubts', 'doubted_at', 'unsure', 'faults', 'look')
redis.call('HSET', work_key(id), 'asked_from', ms(now),
  'retried', ARGV[3],
  'deadline_at', ms(now + tonumber(ARGV[5] ~= '' and ARGV[5] or ARGV[4])))
to_state(id, state, 'waiting', redis.call('HGET', task_key(id), 'submitted_at'))
redis.call('ZADD', due_key('poll'), ms(now), id)
return 'ok'
