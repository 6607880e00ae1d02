-- Charges every bucket of one request, or none. `now` (µs since the epoch) comes from the prologue.
--
-- KEYS[i]   a bucket: its theoretical arrival time in µs since the epoch; it expires when its debt is gone
-- ARGV[1]   the server's time as the caller believed it when it sent this, in µs; 0 when it has no idea
-- ARGV[2]   '1': judge only, write nothing
-- ARGV[3…]  per bucket: tolerance τ in µs, charge cost × T in µs, the caller's note (a debt in µs), '1' to enforce
--
-- Returns   now, then per bucket: 1 when it had room else 0, its debt in µs afterwards
--
-- All numbers are whole and below 2^53, where doubles are exact, up to the year 2255. They leave as integers or
-- through '%.0f': Lua's own conversion prints 14 digits and would drop microseconds.

-- A note was drained to the moment of sending. What passed since is drained here, so that it equals this server's
-- own count to the microsecond and a slow network costs the client nothing. A difference that no network explains
-- is another clock: then the note counts as it is.
local sent = tonumber(ARGV[1])
local underway = now - sent
if underway < 0 or underway > 5000000 then underway = 0 end
local peek = ARGV[2] == '1'

local stored = redis.call('MGET', unpack(KEYS))
local own, debts, fits = {}, {}, {}
local granted = true
for i = 1, #KEYS do
  local at = 4 * i - 1
  local tolerance, charge = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  own[i] = math.max(0, (tonumber(stored[i] or '0') or 0) - now)
  debts[i] = math.min(tolerance, math.max(own[i], tonumber(ARGV[at + 2]) - underway))
  fits[i] = debts[i] + charge <= tolerance
  if not fits[i] and ARGV[at + 3] == '1' then granted = false end
end

local answer = { now }
for i = 1, #KEYS do
  local debt = debts[i]
  if not peek then
    if granted and fits[i] then debt = debt + tonumber(ARGV[4 * i]) end
    -- A note that is greater is kept even when the hit is denied. So is a debt that was cut to τ (the limit is smaller
    -- than it was, or this server's clock went back): left as it was it would stand at τ, undrained, until then.
    if debt ~= own[i] then
      redis.call('SET', KEYS[i], string.format('%.0f', now + debt), 'PX', string.format('%.0f', math.ceil(debt / 1000)))
    end
  end
  answer[2 * i] = fits[i] and 1 or 0
  answer[2 * i + 1] = debt
end
return answer
