-- KEYS[1] the overrides of the fleet: a line of which history this is and how many changes it has seen, then a line each:
-- name, version, moment, draw, 1 when it is over, until when it is kept (milliseconds; 0: for good), the change that
-- brought it, and what only the fleet can read.
-- ARGV[1] a name for a new history, ARGV[2] and ARGV[3] which one the caller knows and up to which change, ARGV[4] now
-- (milliseconds), then lines to bring, without the change. Returns the first line and the lines that the caller lacks.
local text = redis.pcall('GET', KEYS[1])
-- Another kind of value is nobody's: it is overwritten, and nothing waits for a person. Any other error is one.
if type(text) == 'table' then
  if not string.find(text.err or '', 'WRONGTYPE', 1, true) then return text end
  text = false
end
local history, count, body = string.match(text or '', '^(%x+) (%d+)\n(.*)$')
-- Nobody makes so many changes, and the next one would have no number.
if not history or tonumber(count) >= 2 ^ 46 then history, count, body = '0', '0', '' end
count = tonumber(count)
local since = tonumber(ARGV[3])
if history ~= ARGV[2] or since > count then since = 0 end
if #ARGV < 5 and history == ARGV[2] and since == count then return history .. ' ' .. ARGV[3] .. '\n' end
local function line(name, version, moment, draw, over, till, change, sealed)
  return {name = name, order = {tonumber(version), tonumber(moment), tonumber(draw), tonumber(over)},
    till = tonumber(till), change = tonumber(change), front = table.concat({name, version, moment, draw, over, till}, ' '),
    sealed = sealed}
end
local known, all = {}, {}
local pattern = '(%x+) (%d+) (%d+) (%d+) (%d) (%d+) '
for name, version, moment, draw, over, till, change, sealed in string.gmatch(body, pattern .. '(%d+) (%x+)\n') do
  local one = line(name, version, moment, draw, over, till, change, sealed)
  if one.order[1] < 2 ^ 46 and one.change <= count then
    known[name] = one
    all[#all + 1] = one
  end
end
if #ARGV >= 5 then
  local function is_newer(one, other)
    for place = 1, 4 do
      if one[place] ~= other[place] then return one[place] > other[place] end
    end
    return false
  end
  local changed = false
  for at = 5, #ARGV do
    local name, version, moment, draw, over, till, sealed = string.match(ARGV[at], '^' .. pattern .. '(%x+)$')
    if name then
      local one = line(name, version, moment, draw, over, till, count + 1, sealed)
      local there = known[name]
      if not there then
        all[#all + 1] = one
        known[name] = one
        changed = true
      elseif is_newer(one.order, there.order) then
        for field, value in pairs(one) do there[field] = value end
        changed = true
      end
    end
  end
  if changed then
    count = count + 1
    if history == '0' then history = ARGV[1] end
    local kept = {history .. ' ' .. string.format('%.0f', count) .. '\n'}
    for _, one in ipairs(all) do
      if one.till == 0 or one.till > tonumber(ARGV[4]) then
        kept[#kept + 1] = one.front .. ' ' .. string.format('%.0f', one.change) .. ' ' .. one.sealed .. '\n'
      end
    end
    redis.call('SET', KEYS[1], table.concat(kept))
  end
end
local lacking = {history .. ' ' .. string.format('%.0f', count) .. '\n'}
for _, one in ipairs(all) do
  if one.change > since then lacking[#lacking + 1] = one.front .. ' ' .. one.sealed .. '\n' end
end
return table.concat(lacking)
