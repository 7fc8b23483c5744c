-- Reads prices in turn: LUA_SYMBOLS of them, S0000 and on, from LUA_CLIENTS clients, as a proxy tells them apart.
-- Prints one line of JSON at the end: latencies in microseconds.
local symbols = tonumber(os.getenv("LUA_SYMBOLS") or "1")
local clients = tonumber(os.getenv("LUA_CLIENTS") or "0")
local requests = {}
local position = 0
local count = math.max(symbols, clients)

function init(args)
  for i = 0, count - 1 do
    local headers = {}
    if clients > 0 then
      local c = i % clients
      headers["X-Forwarded-For"] = string.format("10.1.%d.%d", math.floor(c / 250), c % 250 + 1)
    end
    requests[i] = wrk.format("GET", string.format("/api/prices/S%04d", i % symbols), headers)
  end
end

function request()
  position = (position + 1) % count
  return requests[position]
end

function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "p50_us": %d, "p99_us": %d, "max_us": %d, "refused": %d, "socket_errors": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99), latency.max,
    e.status, e.connect + e.read + e.write + e.timeout))
end
