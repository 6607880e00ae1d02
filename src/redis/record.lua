-- KEYS[1] the fleet's record. ARGV[1] the one that is brought; ARGV[2] a text in whose place anything may stand, since no
-- instance can read it, or nothing; ARGV[3] the one that was seen, when the brought one is for that alone, or nothing. Each is
-- the JSON of control/fleet/shared.rs, and the order is that of control/record/merge.rs. An answer of two: 1 and nothing when
-- it was written, 0 and what stays there when not. Numbers stay below 2^53, so a double holds each of them.
local function is_number(value)
  return type(value) == 'number' and value >= 0 and value < 2 ^ 46
end
local function decode(text)
  local sound, one = pcall(cjson.decode, text)
  if not sound or type(one) ~= 'table' or type(one.record) ~= 'table' then return nil end
  local record = one.record
  if not (is_number(one.epoch) and is_number(one.revision) and is_number(one.points)) then return nil end
  if type(record.updated_by) ~= 'string' or type(record.reason) ~= 'string' then return nil end
  if type(record.percent) ~= 'number' then return nil end
  return one
end
-- A number above zero: one is the higher in the order; below: the other.
local function bytes(one, other)
  for at = 1, math.min(#one, #other) do
    local by = string.byte(one, at) - string.byte(other, at)
    if by ~= 0 then return by end
  end
  return #one - #other
end
local function compare(one, other)
  local function memory(of) return of.record.backend == 'memory' and 1 or 0 end
  local steps = {
    one.epoch - other.epoch,
    one.revision - other.revision,
    other.points - one.points,
    memory(one) - memory(other),
    other.record.percent - one.record.percent,
    -- An older version wrote none.
    (tonumber(one.at) or 0) - (tonumber(other.at) or 0),
    bytes(one.record.updated_by, other.record.updated_by),
    bytes(one.record.reason, other.record.reason)
  }
  for _, by in ipairs(steps) do
    if by ~= 0 then return by end
  end
  return 0
end
-- The marks that a list holds: origin, epoch and revision of its last change, and of its last lowering if there is one.
local function marks(list)
  if type(list) ~= 'table' then return {} end
  return list
end
local function reaches(mark, epoch, revision)
  return mark[2] > epoch or (mark[2] == epoch and mark[3] >= revision)
end
-- Whether one knows of each lowering that the other knows of.
local function knows(one, other)
  local lineage, theirs = one.record.lineage, other.record.lineage
  -- An older version compared epochs alone.
  local below = one.epoch + 1
  local own = {}
  if type(lineage) == 'table' then
    below = tonumber(lineage.below) or 0
    for _, mark in ipairs(marks(lineage.marks)) do own[mark[1]] = mark end
  end
  for _, mark in ipairs(marks(one.unheard)) do
    local known = own[mark[1]]
    if not known or reaches(mark, known[2], known[3]) then own[mark[1]] = mark end
  end
  local function all(list)
    for _, mark in ipairs(marks(list)) do
      local lowered = mark[4]
      if type(lowered) == 'table' and lowered[1] >= below then
        local known = own[mark[1]]
        if not known or not reaches(known, lowered[1], lowered[2]) then return false end
      end
    end
    return true
  end
  return all(other.unheard) and (type(theirs) ~= 'table' or all(theirs.marks))
end

local text = redis.pcall('GET', KEYS[1])
-- Another kind of value is nobody's: it is overwritten, and nothing waits for a person. Any other error is one.
if type(text) == 'table' then
  if not string.find(text.err or '', 'WRONGTYPE', 1, true) then return text end
  text = false
end
-- No record is as long as that.
if text and (#text > 65536 or text == ARGV[2]) then text = false end
-- What cannot be read, or counts higher than any instance does, is no record.
local there = text and decode(text)
if there then
  local brought = decode(ARGV[1])
  if not brought then return redis.error_reply('ERR the record that was brought can not be read') end
  local may
  if ARGV[3] ~= '' then
    local seen = decode(ARGV[3])
    may = seen and compare(there, seen) <= 0
  else
    local by = compare(brought, there)
    may = by > 0 or (by == 0 and text ~= ARGV[1])
  end
  -- No lowering is lost to a record of another author: that author's instance merges this one first.
  if not may or not knows(brought, there) then return {0, text} end
end
redis.call('SET', KEYS[1], ARGV[1])
return {1, ''}
