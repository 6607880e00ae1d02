-- KEYS[1] the instances: a line each of id, until when it counts (milliseconds of the server's clock), and its row.
-- ARGV[1] who writes, ARGV[2] now, ARGV[3] until when it counts, ARGV[4] its row, or nothing when it leaves;
-- ARGV[5] for how many milliseconds the key is kept. Returns all lines that count.
local text = redis.pcall('GET', KEYS[1])
-- Another kind of value is nobody's: it is overwritten, and nothing waits for a person. Any other error is one.
if type(text) == 'table' then
  if not string.find(text.err or '', 'WRONGTYPE', 1, true) then return text end
  text = false
end
local kept = {}
local now = tonumber(ARGV[2])
-- Nobody counts for longer than the key is kept. 0: whoever writes does not know the time.
local latest = now > 0 and now + tonumber(ARGV[5]) or math.huge
for id, till, row in string.gmatch(text or '', '(%S+) (%d+) ([^\n]*)\n') do
  if id ~= ARGV[1] and tonumber(till) >= now and tonumber(till) <= latest then
    kept[#kept + 1] = id .. ' ' .. till .. ' ' .. row .. '\n'
  end
end
if ARGV[4] ~= '' then kept[#kept + 1] = ARGV[1] .. ' ' .. ARGV[3] .. ' ' .. ARGV[4] .. '\n' end
local all = table.concat(kept)
redis.call('SET', KEYS[1], all, 'PX', ARGV[5])
return all
