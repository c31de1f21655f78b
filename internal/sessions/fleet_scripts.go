package sessions

import "github.com/redis/rueidis"

// The keys in Redis have one hash tag, and another prefix than keys and settings, of which
// every change wakes every node.
//
//	seen:<viewer>     running sessions by id, with the time of their last request
//	begun:<viewer>    the same with the time of their beginning
//	ended:<viewer>    sessions that have ended for good, with the time of their beginning
//	through:<viewer>  every session that began until then and does not run has ended
//	video:<video>     running sessions of a video, with the time of their last request
//	videos            each video that has running sessions, with the time of their last beat
//	session:<id>      what lists show of a session, and what its end needs
//	untold            sessions whose end no node has told, with the time of their last request or their end
//	places:<viewer>   the last 64 networks and countries from which a viewer has played, with the time of the last use
//	reported:<viewer> a viewer who has lately been reported for sharing
//	node:<node>       it is missing after a loss of the data
//
// Times are those of the Redis, in milliseconds, because the clocks of nodes differ. Nodes
// say how long ago something was.
const (
	fleetKey = "{signed_playback.sessions}:"

	// fleetChannel has a message for each session that has ended for good:
	// viewer, id, beginning, seconds for which it matters, reason.
	fleetChannel = fleetKey + "ended"
)

// luaFunctions begins each script. Its arguments begin with the timeout of sessions and the
// name of the node.
const luaFunctions = `
local P, timeout, node = KEYS[1], tonumber(ARGV[1]), ARGV[2]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function forget(viewer, id)
	redis.call('ZREM', P .. 'seen:' .. viewer, id)
	redis.call('ZREM', P .. 'begun:' .. viewer, id)
	local video = redis.call('HGET', P .. 'session:' .. id, 'video')
	if video then redis.call('ZREM', P .. 'video:' .. video, id) end
end

-- remember keeps an ended session, and of a viewer with many the time until which all have ended.
local function remember(viewer, id, begun, seconds, past)
	local ended, through = P .. 'ended:' .. viewer, P .. 'through:' .. viewer
	redis.call('ZADD', ended, begun, id)
	if redis.call('ZCARD', ended) > 64 then
		local oldest = redis.call('ZRANGE', ended, 0, 0, 'WITHSCORES')
		redis.call('ZREM', ended, oldest[1])
		past = math.max(past, oldest[2])
	end
	if past > tonumber(redis.call('GET', through) or '0') then
		local left = redis.call('PTTL', through)
		redis.call('SET', through, past, 'PX', math.max(left, 1000))
	end
	for _, key in ipairs({ended, through}) do
		if redis.call('TTL', key) < seconds then redis.call('EXPIRE', key, seconds) end
	end
end

local function finish(viewer, id, reason)
	local begun = redis.call('ZSCORE', P .. 'begun:' .. viewer, id) or '0'
	local ends = redis.call('HGET', P .. 'session:' .. id, 'ends')
	local seconds = math.max(math.ceil(tonumber(ends or '0') - now / 1000), 60)
	forget(viewer, id)
	remember(viewer, id, begun, seconds, 0)
	-- What has expired must not come back without an expiry.
	if ends then redis.call('HSET', P .. 'session:' .. id, 'reason', reason) end
	redis.call('PUBLISH', P .. 'ended', table.concat({viewer, id, begun, seconds, reason}, ' '))
end

-- room is how many sessions the script may still take out: other calls must not wait for long.
local room = 500

-- running returns how many sessions a viewer has, after those that are silent are forgotten.
local function running(viewer)
	local silent = redis.call('ZRANGEBYSCORE', P .. 'seen:' .. viewer, '-inf', now - timeout, 'LIMIT', 0, room)
	for _, id in ipairs(silent) do forget(viewer, id) end
	room = room - #silent
	return redis.call('ZCARD', P .. 'seen:' .. viewer)
end

local function keep(viewer, id, video, begun, seen, left, info)
	local session, index = P .. 'session:' .. id, P .. 'video:' .. video
	redis.call('ZADD', P .. 'seen:' .. viewer, seen, id)
	redis.call('ZADD', P .. 'begun:' .. viewer, begun, id)
	redis.call('ZADD', index, seen, id)
	redis.call('ZADD', P .. 'videos', now, video)
	for _, key in ipairs({index, P .. 'videos'}) do redis.call('ZREMRANGEBYSCORE', key, '-inf', now - timeout) end
	redis.call('HSET', session, 'viewer', viewer, 'video', video, 'node', node, 'info', info, 'begun', begun, 'seen', seen, 'ends', math.floor(now / 1000 + left))
	redis.call('ZADD', P .. 'untold', seen, id)
	for _, key in ipairs({session, P .. 'untold'}) do redis.call('PEXPIRE', key, 2 * timeout + 60000) end
	for _, key in ipairs({P .. 'seen:' .. viewer, P .. 'begun:' .. viewer, index, P .. 'videos'}) do redis.call('PEXPIRE', key, timeout) end
end
`

// luaRow adds a session to an answer, unless it is silent.
const luaRow = `
local function row(answer, id, seen)
	local has = redis.call('HMGET', P .. 'session:' .. id, 'viewer', 'bytes', 'info', 'begun')
	local ago = now - tonumber(seen)
	if not has[1] or ago >= timeout then return end
	for _, value in ipairs({id, tostring(ago), has[4], has[2] or '0', has[3]}) do
		answer[#answer + 1] = value
	end
end
`

func newScript(body string) *rueidis.Lua { return rueidis.NewLuaScriptNoSha(luaFunctions + body) }

var (
	// startScript takes a session: id, viewer, video, its beginning or 0, whether it is
	// new, its limit, whether new ones are refused, the seconds until its token
	// expires, its description, whether nobody has asked for it yet; and pairs of the
	// viewer's sessions on this node and how long ago they were last used. It returns what
	// became of it, and of one that runs its beginning and its description.
	startScript = newScript(`
local id, viewer, video, begun, new, limit, refuse, left, info, unasked = unpack(ARGV, 3, 12)
local twin = cjson.decode(info)
local known = redis.call('ZSCORE', P .. 'begun:' .. viewer, id)
local seen = redis.call('ZSCORE', P .. 'seen:' .. viewer, id)
if redis.call('ZSCORE', P .. 'ended:' .. viewer, id) then return {'ended'} end
begun, limit = math.min(tonumber(begun), now), tonumber(limit)
if begun == 0 then begun = now end
if seen and known and now - tonumber(seen) < timeout then
	local has = redis.call('HGET', P .. 'session:' .. id, 'info')
	if has and (cjson.decode(has).admitted or not twin.admitted) then info = has end
	keep(viewer, id, video, known, now, left, info)
	return {'running', known, info}
end
if new == '0' and begun <= tonumber(redis.call('GET', P .. 'through:' .. viewer) or '-1') then return {'ended'} end
if unasked == '1' then return {'unasked'} end
if limit > 0 then
	for i = 13, #ARGV, 2 do
		if redis.call('ZSCORE', P .. 'seen:' .. viewer, ARGV[i]) then redis.call('ZADD', P .. 'seen:' .. viewer, now - ARGV[i + 1], ARGV[i]) end
	end
	local excess = running(viewer) - limit + 1
	if excess > 0 and refuse == '1' then
		if excess > 1 then return {'limit'} end
		local found
		for _, other in ipairs(redis.call('ZRANGE', P .. 'begun:' .. viewer, 0, -1)) do
			local has = redis.call('HMGET', P .. 'session:' .. other, 'info', 'node')
			local info = has[1] and cjson.decode(has[1]) or {}
			local silent = now - tonumber(redis.call('ZSCORE', P .. 'seen:' .. viewer, other))
			-- What another node has told may be ten seconds old.
			if info.userAgent == twin.userAgent and info.network == twin.network and twin.network ~= '' and silent >= (has[2] == node and 10000 or 20000) then found = other end
		end
		if not found then return {'limit'} end
		finish(viewer, found, 'takeover')
	elseif excess > 0 then
		for _, oldest in ipairs(redis.call('ZRANGE', P .. 'begun:' .. viewer, 0, math.min(excess, 500) - 1)) do finish(viewer, oldest, 'limit') end
		if excess > 500 then return {'limit'} end -- The other nodes must not wait; the next start ends more.
	end
end
redis.call('HDEL', P .. 'session:' .. id, 'told', 'bytes', 'reason', 'excess')
keep(viewer, id, video, begun, now, left, info)
return {'begun', tostring(begun), info}`)

	// beatScript takes whether the node tells all its sessions, because the data has been lost, and
	// sessions: id, viewer, video, beginning, how long ago each was last used, its limit, whether
	// new ones are refused, the seconds until its token expires, the bytes since the last beat, its
	// description. It returns the ids of those that have ended, and "more" if the same call ends
	// more of them. If the node is not known, it does nothing and returns "lost".
	beatScript = newScript(`
local answer, all = {}, ARGV[3] == '1'
local mark = P .. 'node:' .. node
local left = redis.call('TTL', mark)
if left < 0 and not all then return {'lost'} end
if left < 43200 then redis.call('SETEX', mark, 86400, '1') end
for i = 4, #ARGV, 10 do
	local id, viewer, video, begun, ago, limit, refuse, left, bytes, info = unpack(ARGV, i, i + 9)
	local session = P .. 'session:' .. id
	limit = tonumber(limit)
	local last = redis.call('ZSCORE', P .. 'seen:' .. viewer, id)
	if redis.call('ZSCORE', P .. 'ended:' .. viewer, id) or not last and not all and tonumber(begun) <= tonumber(redis.call('GET', P .. 'through:' .. viewer) or '-1') then
		answer[#answer + 1] = id
	else
		redis.call('HINCRBY', session, 'bytes', bytes)
		if not last then redis.call('HDEL', session, 'told', 'reason') end
		keep(viewer, id, video, math.min(tonumber(begun), now), math.max(tonumber(last or '0'), now - ago), left, info)
		if limit > 0 and (not last or redis.call('HGET', session, 'excess')) then
			local excess = math.max(running(viewer) - limit, 0)
			local ends = math.min(excess, room)
			room = room - ends
			local first, past = 0, ends - 1
			if refuse == '1' then first, past = -ends, -1 end
			if ends > 0 then
				for _, other in ipairs(redis.call('ZRANGE', P .. 'begun:' .. viewer, first, past)) do finish(viewer, other, 'limit') end
			end
			redis.call('HDEL', session, 'excess')
			if ends < excess then
				redis.call('HSET', session, 'excess', '1')
				answer[#answer + 1] = 'more'
			end
		end
	end
end
return answer`)

	// settleScript takes sessions that this node has ended: id, viewer, reason, bytes
	// since the last beat. For each it returns the bytes in all, "" if that is not
	// known, or "-1" if the session runs elsewhere or another node has told its end.
	settleScript = newScript(`
local answer = {}
for i = 3, #ARGV, 4 do
	local id, viewer, reason, bytes = unpack(ARGV, i, i + 3)
	local session = P .. 'session:' .. id
	local seen = redis.call('ZSCORE', P .. 'seen:' .. viewer, id)
	if redis.call('EXISTS', session) == 0 then
		answer[#answer + 1] = ''
	else
		local total = redis.call('HINCRBY', session, 'bytes', bytes)
		local away = reason == 'timeout' and seen and now - tonumber(seen) < timeout and redis.call('HGET', session, 'node') ~= node
		if reason == 'timeout' and not away then forget(viewer, id) end
		if reason == 'until' then finish(viewer, id, reason) end
		if away or redis.call('HSETNX', session, 'told', '1') == 0 then total = -1 end
		if not away then redis.call('ZREM', P .. 'untold', id) end
		answer[#answer + 1] = tostring(total)
	end
end
return answer`)

	// orphansScript takes how long after the timeout of a session, in milliseconds, its node has not told
	// its end because it was killed. Of up to 100 such sessions it returns what listScript does and
	// the reason of the end. No other call returns the same ones.
	orphansScript = newScript(luaRow + `
local answer, silent = {}, timeout
timeout = math.huge
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'untold', '-inf', now - silent - ARGV[3], 'LIMIT', 0, 100)) do
	redis.call('ZREM', P .. 'untold', id)
	local has = redis.call('HMGET', P .. 'session:' .. id, 'viewer', 'seen', 'reason')
	if has[1] and redis.call('HSETNX', P .. 'session:' .. id, 'told', '1') == 1 then
		forget(has[1], id)
		row(answer, id, has[2])
		answer[#answer + 1] = has[3] or 'timeout'
	end
end
return answer`)

	// sharingScript takes the period and the threshold of the score, and uses of sessions: viewer,
	// network, its family, country, and what the session itself adds to the score. Of each viewer who
	// is to be reported it returns the number of the use, the score, and how many networks, countries
	// and sessions make it.
	sharingScript = newScript(`
local period, threshold, answer = tonumber(ARGV[3]), tonumber(ARGV[4]), {}
for i = 5, #ARGV, 5 do
	local viewer, network, family, country, own = unpack(ARGV, i, i + 4)
	local places = P .. 'places:' .. viewer
	redis.call('ZADD', places, now, family .. ' ' .. network .. ' ' .. country)
	redis.call('ZREMRANGEBYSCORE', places, '-inf', now - period)
	for _, place in ipairs(redis.call('ZRANGE', places, 0, -65)) do redis.call('ZREM', places, place) end
	redis.call('PEXPIRE', places, period)
	local seen, countries, networks = {}, 0, {['0'] = 0, ['1'] = 0}
	for _, place in ipairs(redis.call('ZRANGE', places, 0, -1)) do
		local of, at, from = string.match(place, '^(%d) (%d+) (%a*)$')
		if not seen[at] then networks[of] = networks[of] + 1 end
		if from ~= '' and not seen[from] then countries = countries + 1 end
		seen[at], seen[from] = true, true
	end
	local most, active = math.max(networks['0'], networks['1']), running(viewer)
	local score = math.max(0, most - 1) + 2 * math.max(0, countries - 1) + math.max(0, active - 1) + own
	if score >= threshold and redis.call('EXISTS', P .. 'reported:' .. viewer) == 0 then
		redis.call('SET', P .. 'reported:' .. viewer, '1', 'PX', period)
		for _, value in ipairs({(i - 5) / 5, score, most, countries, active}) do answer[#answer + 1] = tostring(value) end
	end
end
return answer`)

	// restoreScript takes ended sessions: viewer, id, beginning, the seconds for which it
	// matters, and until when every session of the viewer has begun that has ended.
	restoreScript = newScript(`
for i = 3, #ARGV, 5 do
	local viewer, id, begun, seconds, past = unpack(ARGV, i, i + 4)
	forget(viewer, id)
	remember(viewer, id, begun, tonumber(seconds), tonumber(past))
end
return 0`)

	// endScript takes the ids of sessions.
	endScript = newScript(`
for i = 3, #ARGV do
	local viewer = redis.call('HGET', P .. 'session:' .. ARGV[i], 'viewer')
	if viewer and redis.call('ZSCORE', P .. 'seen:' .. viewer, ARGV[i]) then finish(viewer, ARGV[i], 'deleted') end
end
return 0`)

	// findScript takes the id of a session, and returns what listScript does of it, or
	// nothing.
	findScript = newScript(luaRow + `
local viewer = redis.call('HGET', P .. 'session:' .. ARGV[3], 'viewer')
local seen = viewer and redis.call('ZSCORE', P .. 'seen:' .. viewer, ARGV[3])
local answer = {}
if seen then row(answer, ARGV[3], seen) end
return answer`)

	// listScript takes the name of an index and a place in it, and returns the next place,
	// or "", and of up to 500 running sessions the id, how long ago each was last used, its
	// beginning, bytes and description.
	listScript = newScript(luaRow + `
local index, place, answer = P .. ARGV[3], tonumber(ARGV[4]), {''}
local found = redis.call('ZRANGE', index, place, place + 499, 'WITHSCORES')
if #found == 1000 then answer[1] = tostring(place + 500) end
for i = 1, #found, 2 do row(answer, found[i], found[i + 1]) end
return answer`)

	// countAllScript takes a place in the list of videos, and returns the next place, or "",
	// and of up to 500 videos the id and how many sessions run.
	countAllScript = newScript(`
local place, answer = tonumber(ARGV[3]), {''}
local found = redis.call('ZRANGE', P .. 'videos', place, place + 499)
if #found == 500 then answer[1] = tostring(place + 500) end
for _, video in ipairs(found) do
	answer[#answer + 1] = video
	answer[#answer + 1] = tostring(redis.call('ZCOUNT', P .. 'video:' .. video, now - timeout + 1, '+inf'))
end
return answer`)

	// countScript takes a video, and returns how many sessions of it run.
	countScript = newScript(`return redis.call('ZCOUNT', P .. 'video:' .. ARGV[3], now - timeout + 1, '+inf')`)
)
