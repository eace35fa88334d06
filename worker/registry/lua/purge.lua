-- Removes the record of a final task, its notes and its index entries. Invariant: a task that is
-- not final, has unsettled callbacks, or has changed since it was read is never removed. Afterwards
-- the id is unknown, as if it had never been submitted.
-- ARGV: ns, id, finished_at as read
-- Returns 'ok' (gone, now or before), 'changed', 'telling' or the state that is not final.
local id = ARGV[2]
local record = redis.call('HMGET', task_key(id), 'state', 'finished_at')
local state = record[1]
if not state then return 'ok' end
if state == 'waiting' or state == 'copying' then return state end
if record[2] ~= ARGV[3] then return 'changed' end
if redis.call('ZSCORE', due_key('tell'), id) then return 'telling' end
redis.call('DEL', task_key(id))
forget(id)
return 'ok'
