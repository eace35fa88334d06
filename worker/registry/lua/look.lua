-- Has waiting tasks polled at once: the caller knows that they are done.
-- Invariant: at most a quarter of the fleet's rate goes to looks, and overdue tasks go first; no
-- task is polled later than without the look; gaps after faults and doubts stay; a claimed task
-- only gets a note, which its save follows.
-- ARGV: ns, rate, burst, id...
-- Returns for each id 'looked', 'claimed', 'backing_off', 'copying', 'final' or 'unknown'.
local now, rate, out = now_ms(), tonumber(ARGV[2]), {}
local _, factor = rate_tokens(now, rate, tonumber(ARGV[3]))

local function look(id)
  local state = read('HGET', task_key(id), 'state')
  local work = read('HMGET', work_key(id), 'token', 'look', 'faults', 'doubts', 'held')
  if not state or not work then return 'unknown' end
  if state == 'copying' then return state end
  if state ~= 'waiting' then return 'final' end
  local due = tonumber(redis.call('ZSCORE', due_key('poll'), id))
  local due_anywhere = due or tonumber(redis.call('ZSCORE', due_key('copy'), id))
  local later = due_anywhere and due_since(due_anywhere, now) > now
  local place = look_place(now)
  if later and work[1] then
    if place and not work[2] then
      redis.call('HSET', work_key(id), 'look', ms(place))
      take_look_place(place, rate, factor)
    end
    return 'claimed'
  end
  if later and (work[3] or work[4] or work[5] == ms(due_anywhere)) then return 'backing_off' end
  if due and place and place < due_since(due, now) then
    redis.call('ZADD', due_key('poll'), ms(place), id)
    take_look_place(place, rate, factor)
  end
  return 'looked'
end

for i = 4, #ARGV do out[#out + 1] = look(ARGV[i]) end
return out
