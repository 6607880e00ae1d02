-- KEYS[1] the instances: a line each of id, until when it counts (milliseconds of the server's clock), and its row.
-- ARGV[1] who writes, ARGV[2] now, ARGV[3] until when it counts, ARGV[4] its row, or nothing when it leaves;
-- ARGV[5] for how many milliseconds the key is kept. Returns all lines that count.
local kept = {}
for id, till, row in string.gmatch(redis.call('GET', KEYS[1]) or '', '(%S+) (%d+) ([^\n]*)\n') do
  if id ~= ARGV[1] and tonumber(till) >= tonumber(ARGV[2]) then
    kept[#kept + 1] = id .. ' ' .. till .. ' ' .. row .. '\n'
  end
end
if ARGV[4] ~= '' then kept[#kept + 1] = ARGV[1] .. ' ' .. ARGV[3] .. ' ' .. ARGV[4] .. '\n' end
local all = table.concat(kept)
redis.call('SET', KEYS[1], all, 'PX', ARGV[5])
return all
