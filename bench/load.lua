-- What wrk sends: GETs of the paths in a file, one a line, in turn.
--
--   wrk … -s load.lua <url> -- <file> once|again [<Name: value>...]
--
-- With "once", no path is sent twice: the run reports that they are used up.
-- wrk must have one thread, for each would begin at the first path.

-- Of the interpreter that sends.
local requests, count = {}, 0
local once = false
sent, used_up = 0, false -- globals, which the other can read

-- Of the one that begins and ends the run.
local sender

function setup(thread)
	sender = thread
end

function init(args)
	once = args[2] == "once"
	for i = 3, #args do
		local name, value = args[i]:match("^([^:]+): (.*)$")
		wrk.headers[name] = value
	end
	for path in io.lines(args[1]) do
		count = count + 1
		requests[count] = wrk.format("GET", path)
	end
	collectgarbage()
end

function request()
	sent = sent + 1
	used_up = once and sent > count
	return requests[(sent - 1) % count + 1]
end

function done(summary, latency)
	local e = summary.errors
	io.write(string.format(
		'\nRESULT {"requests":%d,"micros":%d,"bytes":%d,"p50":%d,"p90":%d,"p99":%d,"exhausted":%s,' ..
		'"errors":{"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}}\n',
		summary.requests, summary.duration, summary.bytes,
		latency:percentile(50), latency:percentile(90), latency:percentile(99),
		tostring(sender:get("used_up")),
		e.connect, e.read, e.write, e.status, e.timeout))
end
