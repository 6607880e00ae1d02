-- KEYS[1] the fleet's record. ARGV[1..3] the order of the one that is brought: epoch, revision, basis points; ARGV[4] it.
-- ARGV[5] a text in whose place anything may stand, since no instance can read it, or nothing. ARGV[6..8], when it is a
-- raise: the order that whoever raises has seen. An answer of two: 1 and nothing when it was
-- written, 0 and what stays there when not. Numbers stay below 2^53, so a double holds each of them.
local function is_newer(one, other)
  for place = 1, 2 do
    if one[place] ~= other[place] then return one[place] > other[place] end
  end
  return one[3] < other[3]
end
local function order(first)
  return {tonumber(ARGV[first]), tonumber(ARGV[first + 1]), tonumber(ARGV[first + 2])}
end
local text = redis.pcall('GET', KEYS[1])
-- Another kind of value is nobody's: it is overwritten, and nothing waits for a person. Any other error is one.
if type(text) == 'table' then
  if not string.find(text.err or '', 'WRONGTYPE', 1, true) then return text end
  text = false
end
-- No record is as long as that.
if text and (#text > 65536 or text == ARGV[5]) then text = false end
local sound, there = pcall(cjson.decode, text or '')
local function is_number(value)
  return type(value) == 'number' and value >= 0 and value < 2 ^ 46
end
-- What cannot be read, or says what nobody ever counted to, is nobody's record.
if sound and type(there) == 'table' and is_number(there.epoch) and is_number(there.revision)
    and is_number(there.points) then
  local known = {there.epoch, there.revision, there.points}
  local may
  if ARGV[6] then may = not is_newer(known, order(6)) else may = is_newer(order(1), known) end
  if not may then return {0, text} end
end
redis.call('SET', KEYS[1], ARGV[4])
return {1, ''}
