-- Charges every bucket of one request, or none. `now` (µs since the epoch) comes from the prologue.
--
-- KEYS[i]   a bucket. GCRA: its theoretical arrival time in µs since the epoch; it expires when its debt is gone.
--           A calendar window: 'w<end>:<count>', its end in µs since the epoch; it expires at its end.
--           Behind either stands a tag, '.0' and five digits: of the instance that charged the bucket when it was empty,
--           or made one of the later charges, each of which takes that place with a probability of 1/32. As a fraction
--           it is below what a double of these years resolves. A value without one was written by a version that has
--           no tags, and is read as well. Such a version reads a tagged GCRA value exactly, and takes a tagged window
--           for one that has not begun
-- ARGV[1]   the server's time as the caller believed it when it sent this, in µs; 0 when it has no idea
-- ARGV[2]   the caller's tag
-- ARGV[3…]  per bucket: tolerance τ in µs, charge cost × T in µs, the caller's note (a debt in µs), flags: 1 to
--           enforce, 2 for a calendar window, 4 for a charge after the fact, 8 to judge only and write nothing. A window
--           counts in units; three instants follow: when the window that the note belongs to began, when it ends, and
--           when the one after it does. After the fact nothing is judged: as much is charged as fits, and where the
--           charge is negative given back
--
-- Returns   now, then per bucket: 1 when it had room else 0, its debt afterwards, and from when that debt counts: now,
--           or the end of the window. Where a hit was charged and the bucket was not empty, the first of these holds 4 as
--           well when the charge of the tag was the caller's, 2 when it was another instance's. A denied hit says nothing
--           of that: the instance that charged last knows of the denial and does not ask, the others do
--
-- All numbers are whole and below 2^53, where doubles are exact, up to the year 2255. They leave as integers or
-- through a format: Lua's own conversion prints 14 digits and would drop microseconds.

-- Looked up once: that alone is 2 % of a decision.
local call = redis.call
local tag = ARGV[2]

-- A note was drained to the moment of sending. What passed since is drained here, so that it equals this server's
-- own count to the microsecond and a slow network costs the client nothing. A difference that no network explains
-- is another clock: then the note counts as it is.
local sent = tonumber(ARGV[1])
local underway = now - sent
if underway < 0 or underway > 5000000 then underway = 0 end

-- Nearly every request owes one bucket that is charged as it is judged: then nothing is gathered in tables, and what the
-- rest of this script does is done in as few steps as there are. It decides the same: both ways are tested alike. Arguments
-- are numbers as soon as they are reckoned with, and the milliseconds have far fewer than 14 digits.
local enforce = ARGV[6]
if not KEYS[2] and (enforce == '1' or enforce == '0') then
  local key, tolerance, charge = KEYS[1], ARGV[3] + 0, ARGV[4] + 0
  -- As below, not GET: a user who lacks the one command or the other is found out by the first probe, and a key of another
  -- type is none.
  local stored = call('MGET', key)[1]
  local own = stored and tonumber(stored) or 0
  own = own > now and own - now or 0
  if own % 1 > 0 then own = own - own % 1 end
  local debt = ARGV[5] - underway
  if debt < own then debt = own end
  if debt > tolerance then debt = tolerance end
  local fits = debt + charge <= tolerance and 1 or 0
  -- The seventh byte from the end is the full stop of a tag.
  local last = own > 0 and string.byte(stored, -7) == 46 and string.sub(stored, -7) or ''
  if fits == 1 and charge > 0 then
    debt = debt + charge
    if last == tag then fits = 5 elseif last ~= '' then fits = 3 end
    -- Not every time: calls of one instance come in batches, and then the charge just before is its own more often than
    -- not. The microseconds of the clock are the coin.
    if last == '' or now % 32 == 0 then last = tag end
  end
  if debt ~= own then
    local lives = debt > 1 and math.ceil(debt / 1000) or 1
    -- As two whole numbers, each within 32 bits: twice as fast as the long division behind '%.0f'.
    local full = now + debt
    local micros = full % 1000000
    call('SET', key, string.format('%d%06d%s', (full - micros) / 1000000, micros, last), 'PX', lives)
  end
  return { now, fits, debt, now }
end

-- The end of the window that `now` is in: exact for the three that the caller knows, and for windows of equal lengths.
local function window_end(start, stop, next)
  if now < start then return start - math.floor((start - 1 - now) / (stop - start)) * (stop - start) end
  if now < stop then return stop end
  return next + math.floor((now - stop) / (next - stop)) * (next - stop)
end

local stored = call('MGET', unpack(KEYS))
local own, debts, fits, charges, from, last, changes, carried = {}, {}, {}, {}, {}, {}, {}, {}
local granted, peek = true, false
local at = 3
for i = 1, #KEYS do
  local tolerance, note, flags = tonumber(ARGV[at]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  charges[i] = tonumber(ARGV[at + 1])
  at = at + 4
  if flags >= 8 then peek, flags = true, flags - 8 end
  local after = flags >= 4
  if after then flags = flags - 4 end
  local back = after and charges[i] < 0
  if flags < 2 then
    from[i] = now
    local full = tonumber(stored[i] or '0') or 0
    own[i] = math.max(0, full - now)
    if own[i] % 1 > 0 then own[i] = own[i] - own[i] % 1 end
    last[i] = own[i] > 0 and string.byte(stored[i], -7) == 46 and string.sub(stored[i], -7) or ''
    note = note - underway
    -- What drained under way could have drained from an empty bucket.
    if back then charges[i] = math.min(0, charges[i] + underway) end
  else
    flags = flags - 2
    local start, stop, next = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    at = at + 3
    from[i] = window_end(start, stop, next)
    own[i], last[i] = 0, ''
    local written, count, marked = string.match(stored[i] or '', '^w(%d+):(%d+)(%.?%d*)$')
    written = tonumber(written)
    -- A window that another server, whose clock was ahead, had begun already is not begun again. One that begins in more
    -- than a minute was begun before this clock was set back: its count is carried into the present window, since left
    -- there it would deny until the end of that one.
    if written == next and from[i] == stop or written == stop and from[i] == start then
      if from[i] - now <= 60000000 then from[i] = written else carried[i] = true end
    end
    if written == from[i] or carried[i] then own[i], last[i] = tonumber(count), marked end
    -- A neighbour's note says nothing about this window. Clocks that are further apart have no window in common: then it
    -- counts as it is.
    if from[i] ~= stop and (from[i] == start or from[i] == next) then note = 0 end
    if back and from[i] ~= stop then charges[i] = 0 end
  end
  debts[i] = math.min(tolerance, math.max(own[i], note))
  -- Written again in any case: the stored value is of another window.
  if carried[i] then own[i] = -1 end
  if after then charges[i] = math.max(-debts[i], math.min(charges[i], tolerance - debts[i])) end
  changes[i] = after
  fits[i] = debts[i] + charges[i] <= tolerance
  if not fits[i] and flags == 1 then granted = false end
end

local answer = { now }
for i = 1, #KEYS do
  local debt, told = debts[i], fits[i] and 1 or 0
  if not peek then
    if granted and fits[i] then
      debt = debt + charges[i]
      -- A change after the fact is no request of its own.
      if charges[i] > 0 and not changes[i] then
        if own[i] > 0 and last[i] ~= '' then told = last[i] == tag and 5 or 3 end
        if own[i] == 0 or last[i] == '' or now % 32 == 0 then last[i] = tag end
      end
    end
    -- A note that is greater is kept even when the hit is denied. So is a debt that was cut to τ (the limit is smaller
    -- than it was, or this server's clock went back): left as it was it would stand at τ, undrained, until then.
    if debt ~= own[i] then
      -- Where all was given back: nothing lives for no time at all.
      local value, lives = string.format('%.0f%s', now + debt, last[i]), math.max(1, debt)
      if from[i] > now then value, lives = string.format('w%.0f:%.0f%s', from[i], debt, last[i]), from[i] - now end
      call('SET', KEYS[i], value, 'PX', string.format('%.0f', math.ceil(lives / 1000)))
    end
  end
  answer[3 * i - 1] = told
  answer[3 * i] = debt
  answer[3 * i + 1] = from[i]
end
return answer
