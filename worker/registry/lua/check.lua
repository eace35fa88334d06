-- Uses one key of every kind, and returns those that the fleet may not use or that hold another
-- type. Invariant: no task changes, and the script removes all that it writes.
-- No id begins with '-'.
-- ARGV: ns
-- Returns {key, Redis' error, ...}.
local wrong = {}
local function try(key, ...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then
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

for _, name in ipairs({'rate', 'counters', 'services', 'webhooks', 'versions', 'circuit:upstream',
  'circuit:store', 'intake:strikes', 'turn:poll', 'turn:copy', 'turn:fetch', 'turn:tell'}) do
  try(ns .. ':' .. name, 'HEXISTS', ns .. ':' .. name, '')
end
for _, name in ipairs({'due:poll', 'due:copy', 'due:fetch', 'due:tell', 'index:waiting', 'index:copying',
  'index:stored', 'index:partial', 'index:failed', 'expiring', 'workers', 'suspects', 'aside',
  'turns:poll', 'turns:copy', 'turns:fetch', 'turns:tell'}) do
  try(ns .. ':' .. name, 'ZCARD', ns .. ':' .. name)
end
try(ns .. ':refused', 'LLEN', ns .. ':refused')
for _, name in ipairs({'events', 'intake'}) do
  try(ns .. ':' .. name, 'XRANGE', ns .. ':' .. name, '-', '+', 'COUNT', '1')
end
for _, kind in ipairs({'task', 'work', 'durations'}) do hold(kind, 'HSET', 'a', 'b') end
for _, kind in ipairs({'said', 'reconciled', 'store'}) do hold(kind, 'SET', '1', 'PX', '1000') end
hold('claim', 'RPUSH', '1')
hold('overdue', 'ZADD', '1', '1')
return wrong
