-- Lets one caller do what the fleet does once in a while. Invariant: another one may after `bound` at the
-- latest, whatever has become of the key or of Redis' clock.
-- ARGV: ns, key, bound (ms)
-- Returns 1 for the caller that may, else 0.
return once(ARGV[2], tonumber(ARGV[3])) and 1 or 0
