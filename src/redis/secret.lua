-- KEYS[1] the fleet's secret. ARGV[1] the secret that takes the place of none or of a damaged one. Returns the secret that is
-- there afterwards, and 1 where that is the one given, written just now, or else 0. In one step: two instances that repair the key at the same time agree on one secret.
local there = redis.pcall('GET', KEYS[1])
-- Another kind of value is no secret. Any other error is an error.
if type(there) == 'table' then
  if not string.find(there.err or '', 'WRONGTYPE', 1, true) then return there end
  there = false
end
if there and #there == 64 and not string.find(there, '[^0-9a-fA-F]') then return {there, 0} end
redis.call('SET', KEYS[1], ARGV[1])
return {ARGV[1], 1}
