-- Ends a run: record, index, due sets, event and the due entry for telling, in one step.
-- Invariant: a run ends once, by its owner; readers see either all of its end or nothing.
-- ARGV: ns, id, token, state, reason, finished_at (ms), ttl (ms), events maxlen, restored,
--       upstream calls, record fields and values...
-- Returns 'ok' or 'lost'.
local id, token, state = ARGV[2], ARGV[3], ARGV[4]
local owner = ownership(id, token)
if owner == 'done' then return 'ok' end
local before = redis.call('HGET', task_key(id), 'state')
if owner == 'lost' or not before then
  count('stale_writes', 1)
  return 'lost'
end
local now, finished = now_ms(), ARGV[6]
redis.call('HINCRBY', task_key(id), 'polls', ARGV[10])
count_calls(ARGV[10])
redis.call('ZREM', ns .. ':suspects', id)
note_error(id, '', now)
usable('store', id, now)  -- it holds the manifest
for i = 11, #ARGV, 2 do redis.call('HSET', task_key(id), ARGV[i], ARGV[i + 1]) end
redis.call('HSET', task_key(id), 'reason', ARGV[5], 'finished_at', finished,
  'updated_at', finished, 'told', '[]')
to_state(id, before, state, finished)
local event = {'task_id', id, 'run', redis.call('HGET', task_key(id), 'run'), 'state', state,
  'reason', ARGV[5], 'label', redis.call('HGET', task_key(id), 'label') or '',
  'at', ARGV[9] == '1' and ms(now) or finished}
if ARGV[9] == '1' then
  redis.call('HSET', task_key(id), 'restored', 'true')
  event[#event + 1] = 'restored'
  event[#event + 1] = 'true'
end
redis.call('XADD', ns .. ':events', 'MAXLEN', '~', ARGV[8], '*', unpack(event))
count('final:' .. state, 1)
count('ended:' .. state .. ':' .. ARGV[5], 1)
redis.call('ZREM', due_key('poll'), id)
redis.call('ZREM', due_key('copy'), id)
redis.call('ZREM', due_key('fetch'), id)
-- plan, keys and stored files are kept for a record that can be retried: a retry continues from
-- them
redis.call('HDEL', work_key(id), 'ending', 'cancel', 'cap', 'lapses', 'look')
if state == 'stored' then
  redis.call('HDEL', work_key(id), 'plan')
  for _, field in ipairs(redis.call('HKEYS', work_key(id))) do
    if string.find(field, '^key:') or string.find(field, '^file:') then
      redis.call('HDEL', work_key(id), field)
    end
  end
end
if state ~= 'partial' then redis.call('HDEL', work_key(id), 'data') end
settle(id, token)
if tonumber(redis.call('HGET', work_key(id), 'callbacks') or 0) > 0 then
  redis.call('ZADD', due_key('tell'), ms(now), id)
else
  keep_for(id, now, tonumber(ARGV[7]))
end
return 'ok'
