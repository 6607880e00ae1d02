-- Prologue: the server's own time in microseconds. Tests put an instant of theirs in its place.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
