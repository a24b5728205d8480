-- wrk's script: wrk -s update.lua URL -- TEMPLATE FIRST_ID
-- Sends the template (traffic.py) with an id that no other request has, over 1,000 chats, and prints one line of JSON.

local MARK, CHAT = string.rep("I", 9), string.rep("C", 9)
local FIRST_CHAT, CHATS = 700000000, 1000
local id, before, middle
local after = {}

-- A request is made for every request sent, so all that can be joined beforehand is.
function init(args)
  local file = assert(io.open(args[1], "rb"))
  local text = file:read("*a")
  file:close()
  id = tonumber(args[2])
  local first = text:find(MARK, 1, true)
  local second = text:find(MARK, first + #MARK, true)
  before = text:sub(1, first - 1)
  middle = text:sub(first + #MARK, second - 1)
  local rest = text:sub(second + #MARK)
  for chat = 0, CHATS - 1 do
    after[chat] = rest:gsub(CHAT, tostring(FIRST_CHAT + chat))
  end
end

function request()
  id = id + 1
  return before .. id .. middle .. id .. after[id % CHATS]
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "p999_ms": %.3f, "errors": %d}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3,
    e.connect + e.read + e.write + e.status + e.timeout))
end
