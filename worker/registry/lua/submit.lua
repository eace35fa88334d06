-- Accepts ids: a new id gets its record and one due entry together, a known one does not change.
-- Invariant: a record that is not final is always in a due set.
-- ARGV: ns, metadata, label, options, callbacks (count), deadline (ms), id...
-- Returns one flag for each id: 1 new, 0 known.
local now = now_ms()
local flags = {}
for i = 7, #ARGV do
  local id = ARGV[i]
  if redis.call('EXISTS', task_key(id)) == 1 then
    flags[#flags + 1] = 0
  else
    -- the record first: a full Redis refuses it before anything has changed
    redis.call('HSET', task_key(id),
      'schema', '1', 'task_id', id, 'label', ARGV[3], 'metadata', ARGV[2], 'options', ARGV[4],
      'run', '1', 'state', 'waiting', 'reason', '', 'error', '', 'polls', '0', 'upstream', '{}',
      'submitted_at', ms(now), 'updated_at', ms(now), 'finished_at', '', 'told', '[]')
    forget(id)
    redis.call('HSET', work_key(id), 'callbacks', ARGV[5], 'asked_from', ms(now),
      'deadline_at', ms(now + tonumber(ARGV[6])))
    redis.call('ZADD', index_key('waiting'), ms(now), id)
    -- the first look at the bucket comes first: the files may be stored already
    redis.call('ZADD', due_key('copy'), ms(now), id)
    flags[#flags + 1] = 1
  end
end
return flags
