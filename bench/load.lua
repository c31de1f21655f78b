-- What wrk sends: GETs of the paths in a file, one a line.
--
--   wrk … -s load.lua <url> -- <file> again|once|zipf|forge [<Name: value>...]
--
-- again: in turn.
-- once:  no path twice; the run reports that they are used up.
-- zipf:  as an audience asks: each in proportion to 1 by its place in the file.
-- forge: in turn, with new bytes for each "{signature}" and "{address}" in path
--        or header: what RS256 could have made, and an IPv4 address.
--
-- wrk must have one thread, for each would begin at the first path.

-- Of the interpreter that sends.
local requests, count = {}, 0
local pick
sent, used_up = 0, false -- globals, which the other can read

-- Of the one that begins and ends the run.
local sender

function setup(thread)
	sender = thread
end

local random = math.random

-- 256 bytes in base64url. The first character is one of the lower half, so that
-- the number is smaller than any modulus and the whole check has to be made; the
-- last has no bits beyond the last byte.
local alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
local chunks, chunk_length, middle = {}, 17, {}

local function letter(letters)
	local i = random(#letters)
	return letters:sub(i, i)
end

local function make_chunks()
	for i = 1, 4096 do
		local letters = {}
		for j = 1, chunk_length do
			letters[j] = letter(alphabet)
		end
		chunks[i] = table.concat(letters)
	end
end

local fill = {
	["{signature}"] = function()
		for i = 1, 340 / chunk_length do
			middle[i] = chunks[random(#chunks)]
		end
		return letter(alphabet:sub(1, 32)) .. table.concat(middle) .. letter("AQgw")
	end,
	-- From 16.0.0.0 to 126.255.255.254: seven million networks of 256.
	["{address}"] = function()
		return random(16, 126) .. "." .. random(0, 255) .. "." .. random(0, 255) .. "." .. random(1, 254)
	end,
}

-- Takes a request apart, so that only what changes is made anew.
local function template(text)
	local parts, from = {}, 1
	for at, marker, after in text:gmatch("()(%b{})()") do
		if fill[marker] then
			parts[#parts + 1] = text:sub(from, at - 1)
			parts[#parts + 1] = fill[marker]
			from = after
		end
	end
	parts[#parts + 1] = text:sub(from)
	return parts
end

local function forged(parts)
	local text = {}
	for i, part in ipairs(parts) do
		text[i] = type(part) == "function" and part() or part
	end
	return table.concat(text)
end

local function in_turn()
	return requests[(sent - 1) % count + 1]
end

local modes = {
	again = in_turn,
	once = function()
		used_up = sent > count
		return in_turn()
	end,
	zipf = function()
		-- The inverse of the distribution, which is log(rank) / log(count).
		return requests[math.min(math.floor((count + 1) ^ random()), count)]
	end,
	forge = function()
		return forged(in_turn())
	end,
}

function init(args)
	math.randomseed(os.time())
	pick = modes[args[2]] or error(args[2] .. " is not a mode")
	for i = 3, #args do
		local name, value = args[i]:match("^([^:]+): (.*)$")
		wrk.headers[name] = value
	end
	for path in io.lines(args[1]) do
		count = count + 1
		requests[count] = wrk.format("GET", path)
		if args[2] == "forge" then
			requests[count] = template(requests[count])
		end
	end
	make_chunks()
	collectgarbage()
end

function request()
	sent = sent + 1
	return pick()
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
