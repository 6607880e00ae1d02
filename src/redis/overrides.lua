-- KEYS[1] the entries, a hash: by the name of each its front, "name version moment draw over till digest", by the name and
-- a colon what only the fleet can read, and under "#" the line of the whole, "history changes entries digest". KEYS[2] the
-- changes, a sorted set: each front by the number of the change that brought it. A call costs what it brings, however many
-- entries there are; reading needs no script.
-- ARGV[1] a name for a new history; ARGV[2] a history that is damaged, or nothing; ARGV[3] how many entries follow, each
-- as its front and what is sealed of it. Then removals, each as its front and 1 when it goes before its time, else 0.
-- Returns the line of the whole, and the fronts of entries that are newer than the one that was brought. Numbers stay
-- below 2^53, so a double holds each of them.
local MODULUS, MOST, HOUR = 2 ^ 48, 2 ^ 46, 3600000
local function text(number) return string.format('%.0f', number) end
-- Another kind of value is damage, and is replaced. Any other error is an error.
local function unless_wrong_type(answer)
  if type(answer) == 'table' and answer.err then
    if string.find(answer.err, 'WRONGTYPE', 1, true) then return nil end
    error(answer.err)
  end
  return answer
end
local function parse(front)
  local name, version, moment, draw, over, till, digest =
    string.match(front, '^(%x+) (%d+) (%d+) (%d+) (%d) (%d+) (%d+)$')
  if not name then return nil end
  local one = {tonumber(version), tonumber(moment), tonumber(draw), tonumber(over)}
  one.name, one.front, one.till, one.digest = name, front, tonumber(till), tonumber(digest)
  return one[1] < MOST and one.digest < MODULUS and one or nil
end
local function is_newer(one, other)
  for place = 1, 4 do
    if one[place] ~= other[place] then return one[place] > other[place] end
  end
  return false
end

local asked, names = {}, {'#'}
for at = 4, #ARGV, 2 do
  local one = parse(ARGV[at])
  if not one then return redis.error_reply('ERR no front of an override: ' .. ARGV[at]) end
  one.more = ARGV[at + 1]
  asked[#asked + 1] = one
  names[#names + 1] = one.name
end
local history, count, size, sum, stored
-- False when no call has left it so: each call writes both keys, so both have the same names.
local function read()
  history, count, size, sum, stored = '0', 0, 0, 0, {}
  local values = unless_wrong_type(redis.pcall('HMGET', KEYS[1], unpack(names)))
  local indexed = unless_wrong_type(redis.pcall('ZCARD', KEYS[2]))
  if not values or not indexed then return false end
  local fields = redis.call('HLEN', KEYS[1])
  if not values[1] then return fields == 0 and indexed == 0 end
  history, count, size, sum = string.match(values[1], '^(%x+) (%d+) (%d+) (%d+)$')
  count, size, sum = tonumber(count), tonumber(size), tonumber(sum)
  if not sum or history == ARGV[2] or sum >= MODULUS or count >= MOST then return false end
  for place = 2, #names do
    local one = values[place] and parse(values[place])
    if values[place] and not one then return false end
    stored[names[place]] = one or nil
  end
  return size == indexed and 2 * size + 1 == fields
end
if not read() then
  redis.call('UNLINK', KEYS[1], KEYS[2])
  history, count, size, sum, stored = '0', 0, 0, 0, {}
end

local fields, scores, old, gone, newer = {}, {}, {}, {}, {}
local brought, now = tonumber(ARGV[3]), nil
for place, one in ipairs(asked) do
  local there = stored[one.name]
  if place > brought then
    if not now then now = tonumber(redis.call('TIME')[1]) * 1000 end
    -- This very version, and an hour after its time: clocks differ.
    if there and there.front == one.front and one[4] == 1 and (one.more == '1' or one.till + HOUR <= now) then
      size, sum, stored[one.name] = size - 1, (sum - one.digest) % MODULUS, nil
      old[#old + 1], gone[#gone + 1], gone[#gone + 2] = one.front, one.name, one.name .. ':'
    end
  elseif not there or is_newer(one, there) then
    if there then
      old[#old + 1], sum = there.front, sum - there.digest
    else
      size = size + 1
    end
    count, sum, stored[one.name] = count + 1, (sum + one.digest) % MODULUS, one
    fields[#fields + 1], fields[#fields + 2] = one.name, one.front
    fields[#fields + 1], fields[#fields + 2] = one.name .. ':', one.more
    scores[#scores + 1], scores[#scores + 2] = text(count), one.front
  elseif is_newer(there, one) then
    newer[#newer + 1] = there.front
  end
end
if #fields + #gone > 0 then
  if history == '0' then history = ARGV[1] end
  if #old > 0 then redis.call('ZREM', KEYS[2], unpack(old)) end
  if #gone > 0 then redis.call('HDEL', KEYS[1], unpack(gone)) end
  if #scores > 0 then redis.call('ZADD', KEYS[2], unpack(scores)) end
  fields[#fields + 1], fields[#fields + 2] = '#', table.concat({history, text(count), text(size), text(sum)}, ' ')
  redis.call('HSET', KEYS[1], unpack(fields))
end
return {table.concat({history, text(count), text(size), text(sum)}, ' '), unpack(newer)}
