-- Takes one entry of the intake stream: one that has been unsettled for long, else the next new
-- one. The body is not returned if it is too large or has three strikes, from workers that died.
-- Invariant: returning a body adds a strike, which stays until the entry is settled or given back.
-- The strike holds the caller's token, so that a repeated call gets the same entry.
-- ARGV: ns, token, ms after which an unsettled entry is taken again, longest body, longest entry (bytes),
-- most strikes.
-- Returns a verdict, the entry's id, its strikes before, and the rest: 'body' (the body, and the
-- field 'traceparent', '' if there is none of up to 512 bytes), 'large'
-- (bytes), 'struck', 'gone' (it was trimmed); without an entry 'empty', 'reopened' (the stream was
-- closed) or 'blind' (Redis does not let us see whether it is closed; its error).
local stream, group, strikes = ns .. ':intake', 'harvester', ns .. ':intake:strikes'
local last = '18446744073709551615-18446744073709551615'

-- The id of one unsettled entry, or false and the error.
local function unsettled()
  local cursor = '0-0'
  repeat
    local found = redis.pcall('XAUTOCLAIM', stream, group, 'fleet', ARGV[3], cursor,
      'COUNT', 1, 'JUSTID')
    if found.err then return false, found.err end
    if found[2][1] then return found[2][1] end
    cursor = found[1]
  until cursor == '0-0'
  return false
end

-- The entry that an earlier call with this token took.
local function taken()
  local held = redis.call('HGETALL', strikes)
  for i = 1, #held, 2 do
    if held[i + 1] == ARGV[2] then
      redis.call('HDEL', strikes, held[i])
      return string.match(held[i], '^[^/]+')
    end
  end
end

local id, failed = taken(), nil
if not id then id, failed = unsettled() end
if failed and string.find(failed, 'NOGROUP', 1, true) then
  failed = redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM').err
end
if failed then return redis.error_reply(failed) end

local fields
if id then
  local found = redis.call('XRANGE', stream, id, id)
  if not found[1] then  -- trimmed by a producer
    redis.call('XACK', stream, group, id)
    return {'gone', id, 0}
  end
  fields = found[1][2]
else
  local found = redis.call('XREADGROUP', 'GROUP', group, 'fleet', 'COUNT', 1, 'STREAMS', stream, '>')
  if found and found[1] then id, fields = found[1][2][1][1], found[1][2][1][2] end
end

if not id then
  -- An entry with the highest possible id has closed the stream; deleting the stream reopens it.
  local info = redis.pcall('XINFO', 'STREAM', stream)
  if info.err then return {'blind', '', 0, info.err} end
  local seen = {}
  for i = 1, #info, 2 do seen[info[i]] = info[i + 1] end
  if seen['length'] == 0 and seen['last-generated-id'] == last then
    redis.call('DEL', stream)
    return {'reopened', '', 0}
  end
  return {'empty', '', 0}
end

local before = 0
while redis.call('HEXISTS', strikes, id .. '/' .. before + 1) == 1 do before = before + 1 end
if before >= tonumber(ARGV[6]) then return {'struck', id, before} end
local size, body, trace = 0, '', ''
for i = 1, #fields, 2 do
  size = size + #fields[i] + #fields[i + 1]
  if fields[i] == 'body' then body = fields[i + 1] end
  if fields[i] == 'traceparent' and #fields[i + 1] <= 512 then trace = fields[i + 1] end
end
if #body > tonumber(ARGV[4]) or size > tonumber(ARGV[5]) then return {'large', id, before, size} end
redis.call('HSET', strikes, id .. '/' .. before + 1, ARGV[2])
return {'body', id, before, body, trace}
