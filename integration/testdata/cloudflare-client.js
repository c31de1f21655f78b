// Uses Cloudflare's TypeScript SDK as the owner of videos would, and fails where
// an answer differs from what its types promise. Prints the tokens that it has
// minted, by name. The argument has the account, its credentials and the address.

const assert = require("node:assert/strict")
const Cloudflare = require("cloudflare")

const { baseURL, account_id, token, email, key, signing } = JSON.parse(process.argv[2])

// The API is asked through this function, which can be unavailable for a moment.
let calls = 0, unavailable = false
async function fetch(...request) {
  calls++
  if (!unavailable) return globalThis.fetch(...request)
  unavailable = false
  return new Response("", { status: 503, headers: { "retry-after-ms": "1" } })
}

const { stream } = new Cloudflare({ baseURL, apiToken: token, fetch })
const asOwner = new Cloudflare({ baseURL, apiEmail: email, apiKey: key }).stream
const asStranger = new Cloudflare({ baseURL, apiToken: "another-secret", fetch }).stream

async function all(pages) {
  const list = []
  for await (const item of pages) list.push(item)
  return list
}

async function keys() {
  const listed = async () => (await all(stream.keys.get({ account_id }))).map(key => [key.id, key.key_id, key.created])
  const before = await listed(), made = []
  for (let n = 0; n < 2; n++) {
    const { id, pem, jwk, created } = await stream.keys.create({ account_id, body: {} })
    assert.ok(pem && JSON.parse(atob(jwk)).kid === id)
    made.unshift([id, id, created]) // newest first
  }
  assert.deepEqual(await listed(), made.concat(before))
  for (const [id] of made) assert.equal(await stream.keys.delete(id, { account_id }), "Revoked")
  assert.deepEqual(await listed(), before)
  assert.equal((await all(asOwner.keys.get({ account_id }))).length, before.length)
}

async function tokens() {
  const now = Math.floor(Date.now() / 1000)
  const minted = {}
  for (const [name, params] of Object.entries({
    nothing: {},
    early: { exp: now + 7200, nbf: now + 3600 },
    zeros: { exp: 0, nbf: 0, downloadable: false, flags: { original: false } },
    original: { flags: { original: true } },
    ruled: {
      downloadable: true,
      accessRules: [
        { type: "ip.src", ip: ["127.0.0.3", "2400:cb00::/32"], action: "block" },
        { type: "ip.geoip.country", country: ["GB", "MX"], action: "allow" },
        { type: "any", action: "block" },
      ],
    },
    signed: signing,
  })) {
    minted[name] = (await stream.token.create("demo", { account_id, ...params })).token
  }
  return minted
}

async function settings() {
  const settingsOf = async video => {
    const { uid, requireSignedURLs, allowedOrigins, meta, creator, publicDetails, scheduledDeletion, maxDurationSeconds } = await video
    return { uid, requireSignedURLs, allowedOrigins, meta, creator, publicDetails, scheduledDeletion, maxDurationSeconds }
  }
  let want = {
    uid: "vid", requireSignedURLs: true, allowedOrigins: [], meta: {}, creator: null, publicDetails: null, scheduledDeletion: null,
    maxDurationSeconds: null,
  }
  const defaults = want
  for (const changes of [
    {},
    {
      uid: "vid", requireSignedURLs: false, allowedOrigins: ["example.com", "*.example.org", "localhost:8080"],
      meta: { name: "A film", nested: { year: 1927 } }, creator: "Fritz", publicDetails: { title: "Metropolis" },
      scheduledDeletion: "2031-02-03T04:05:06Z", maxDurationSeconds: 9180,
    },
    { creator: "Thea", requireSignedURLs: true, scheduledDeletion: null },
  ]) {
    want = { ...want, ...changes }
    assert.deepEqual(await settingsOf(stream.edit("vid", { account_id, ...changes })), want)
    assert.deepEqual(await settingsOf(stream.get("vid", { account_id })), want)
  }
  await stream.delete("vid", { account_id })
  assert.deepEqual(await settingsOf(stream.get("vid", { account_id })), defaults)
}

async function lists() {
  await stream.edit("first", { account_id, meta: { name: "One fine day" }, creator: "ann" })
  await stream.edit("second", { account_id, meta: { name: "Another Day" }, creator: "bob" })
  await stream.edit("third", { account_id, creator: "ann" })
  const hourAgo = new Date(Date.now() - 3600_000).toISOString(), inAnHour = new Date(Date.now() + 3600_000).toISOString()
  for (const [query, want] of [
    [{}, "third second first"], [{ asc: true }, "first second third"], [{ limit: 2 }, "third second"],
    [{ include_counts: true }, "third second first"], [{ creator: "ann" }, "third first"], [{ id: "first,third,fourth" }, "third first"],
    [{ search: "dAY" }, "second first"], [{ video_name: "Another Day" }, "second"], [{ name: "One fine day,third" }, "third first"],
    [{ after: hourAgo }, "third second first"], [{ before: hourAgo }, ""], [{ start: hourAgo, end: inAnHour }, "third second first"],
    [{ start: inAnHour }, ""], [{ status: "queued" }, ""], [{ type: "live" }, ""], [{ creator: "ann", search: "day" }, "first"],
  ]) {
    const listed = await all(stream.list({ account_id, ...query }))
    assert.equal(listed.map(video => video.uid).filter(id => id !== "configured").join(" "), want, JSON.stringify(query))
  }
}

// The SDK would repeat a call that is refused as a conflict or as one too many. It
// does repeat a call when the API is unavailable for a moment.
async function refusals() {
  const unknown = "0123456789abcdef0123456789abcdef"
  for (const [call, type, status, code] of [
    [() => stream.edit("vid", { account_id, allowedOrigins: ["https://example.com"] }), Cloudflare.BadRequestError, 400, 10005],
    [() => asStranger.keys.delete(unknown, { account_id }), Cloudflare.AuthenticationError, 401, 10000],
    [() => stream.edit("configured", { account_id, requireSignedURLs: false }), Cloudflare.PermissionDeniedError, 403, 10002],
    [() => stream.keys.delete(unknown, { account_id }), Cloudflare.NotFoundError, 404, 10003],
    [() => stream.edit("vid", { account_id, creator: "a".repeat(70 << 10) }), Cloudflare.APIError, 413, 10006],
  ]) {
    calls = 0
    await assert.rejects(call, error => error instanceof type && error.status === status && error.errors[0].code === code)
    assert.equal(calls, 1, `${status}`)
  }
  calls = 0
  unavailable = true
  await stream.get("vid", { account_id })
  assert.equal(calls, 2, "unavailable for a moment")
}

async function main() {
  await keys()
  const minted = await tokens()
  await settings()
  await lists()
  await refusals()
  console.log(JSON.stringify(minted))
}

main()
