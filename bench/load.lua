-- What wrk sends: GETs of the paths in a file, one a line, in turn.
--
--   wrk … -s load.lua <url> -- <file> [<Name: value>...]
--
-- In each request, {signature} in a path or header becomes a new signature of
-- random bytes, {address} a new IPv4 address, and {number 100} the next number
-- below 100.
--
-- wrk must have one thread, because each thread begins at the first path.

local requests, count, sent = {}, 0, 0
local random = math.random
local alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

local function letter(letters)
	local i = random(#letters)
	return letters:sub(i, i)
end

-- Random text in pieces, because random numbers are slow.
local chunks, chunk_length, middle = {}, 17, {}
for i = 1, 4096 do
	local letters = {}
	for j = 1, chunk_length do
		letters[j] = letter(alphabet)
	end
	chunks[i] = table.concat(letters)
end

local fill = {
	-- 256 bytes in base64url. The first character is of the lower half of the
	-- alphabet, so that the number is smaller than any modulus and the whole check
	-- has to be made. The last has no bits beyond the last byte.
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

-- Begins anywhere, so that several loads reach all numbers.
local function counter(below)
	local next = random(below) - 1
	return function()
		next = (next + 1) % below
		return next
	end
end

-- Splits a request at its variable parts.
local function template(text)
	local parts, from = {}, 1
	for at, marker, after in text:gmatch("()(%b{})()") do
		local below = marker:match("^{number (%d+)}$")
		if fill[marker] or below then
			parts[#parts + 1] = text:sub(from, at - 1)
			parts[#parts + 1] = fill[marker] or counter(tonumber(below))
			from = after
		end
	end
	parts[#parts + 1] = text:sub(from)
	return parts
end

function init(args)
	math.randomseed(os.time())
	for i = 2, #args do
		local name, value = args[i]:match("^([^:]+): (.*)$")
		wrk.headers[name] = value
	end
	for path in io.lines(args[1]) do
		count = count + 1
		requests[count] = template(wrk.format("GET", path))
	end
	collectgarbage()
end

function request()
	local parts = requests[sent % count + 1]
	sent = sent + 1
	if #parts == 1 then
		return parts[1]
	end
	local text = {}
	for i, part in ipairs(parts) do
		text[i] = type(part) == "function" and part() or part
	end
	return table.concat(text)
end

function done(summary)
	local e = summary.errors
	io.write(string.format(
		'\nRESULT {"requests":%d,"micros":%d,"bytes":%d,' ..
		'"errors":{"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}}\n',
		summary.requests, summary.duration, summary.bytes,
		e.connect, e.read, e.write, e.status, e.timeout))
end
