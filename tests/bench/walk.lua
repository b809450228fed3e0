-- Walks a file of requests, of which each line is "PATH BODY ID": BODY is 0 for a GET, or else the number of the file
-- that is POSTed, where @ID@ stands for the ID. wrk ... URL -- FILE SKIPPED-LINES BODY-FILE...
local lines, bodies, current = {}, {}, 0

local function read(name)
  local file = assert(io.open(name, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

function init(args)
  local skipped = tonumber(args[2])
  for line in io.lines(args[1]) do
    skipped = skipped - 1
    if skipped < 0 then
      lines[#lines + 1] = line
    end
  end
  for index = 3, #args do
    bodies[index - 2] = read(args[index])
  end
end

function request()
  current = current % #lines + 1
  local path, body, id = lines[current]:match("(%S+) (%S+) (%S+)")
  if body == "0" then
    return wrk.format("GET", path)
  end
  local text = bodies[tonumber(body)]:gsub("@ID@", id)
  return wrk.format("POST", path, nil, text)
end

function done(summary, latency, _)
  local errors = summary.errors
  local lost = errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.6f, "refused": %d, "lost": %d, "p50": %.3f, "p99": %.3f, "max": %.3f}\n',
    summary.requests, summary.duration / 1e6, errors.status, lost,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
