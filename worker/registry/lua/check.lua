-- Uses one key of every kind, and returns those that the fleet may not use or that hold another
-- type. Invariant: no task changes, and the script removes all that it writes. Asked to repair, it
-- removes keys of another type, so that none of them stops the fleet: all but the intake stream,
-- which holds what producers have written.
-- No id begins with '-'.
-- ARGV: ns, 1 to repair
-- Returns {key, Redis' error, ...}; for a repair only the keys that it removed.
local wrong, repair = {}, ARGV[2] == '1'
local function try(key, ...)
  local answer = redis.pcall(...)
  if type(answer) ~= 'table' or not answer.err then return end
  local removes = repair and string.find(answer.err, 'WRONGTYPE', 1, true) and key ~= ns .. ':intake'
  if removes then redis.call('DEL', key) end
  if removes or not repair then
    wrong[#wrong + 1], wrong[#wrong + 2] = key, answer.err
  end
end
local function hold(kind, ...)
  local key = ns .. ':' .. kind .. ':-check'
  local before = #wrong
  local words = {...}
  table.insert(words, 2, key)
  try(key, unpack(words))
  if #wrong == before then try(key, 'DEL', key) end
end

for _, name in ipairs({'rate', 'counters', 'services', 'webhooks', 'versions', 'clock',
  'circuit:upstream', 'circuit:store', 'circuit:tell', 'intake:strikes', 'unacked', 'turn:poll', 'turn:copy',
  'turn:fetch', 'turn:tell'}) do
  try(ns .. ':' .. name, 'HEXISTS', ns .. ':' .. name, '')
end
for _, name in ipairs({'due:poll', 'due:copy', 'due:fetch', 'due:tell', 'index:waiting', 'index:copying',
  'index:stored', 'index:partial', 'index:failed', 'expiring', 'workers', 'suspects', 'aside',
  'unacked_index', 'turns:poll', 'turns:copy', 'turns:fetch', 'turns:tell'}) do
  try(ns .. ':' .. name, 'ZCARD', ns .. ':' .. name)
end
try(ns .. ':refused', 'LLEN', ns .. ':refused')
for _, name in ipairs({'events', 'intake'}) do
  try(ns .. ':' .. name, 'XRANGE', ns .. ':' .. name, '-', '+', 'COUNT', '1')
end
for _, name in ipairs({'reconciled:waiting', 'reconciled:copying'}) do
  try(ns .. ':' .. name, 'GET', ns .. ':' .. name)
end
if repair then return wrong end
for _, kind in ipairs({'task', 'work', 'durations'}) do hold(kind, 'HSET', 'a', 'b') end
for _, kind in ipairs({'said', 'reconciled', 'store'}) do hold(kind, 'SET', '1', 'PX', '1000') end
hold('claim', 'RPUSH', '1')
hold('overdue', 'ZADD', '1', '1')
return wrong
