-- Reads the newest refusals; an entry longer than the bound is replaced by its length.
-- ARGV: ns, how many, longest entry (bytes)
-- Returns the entries, newest first; a number for one that is too long.
local entries = {}
for i = 0, tonumber(ARGV[2]) - 1 do
  local entry = redis.call('LRANGE', ns .. ':refused', i, i)[1]
  if not entry then break end
  entries[#entries + 1] = #entry <= tonumber(ARGV[3]) and entry or #entry
end
return entries
