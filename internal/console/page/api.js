// The calls of the control API. The credential is in a variable of this module and nowhere
// else: not in a URL, a cookie, a store or the document.

const { account } = document.documentElement.dataset
const base = new URL(`../client/v4/accounts/${encodeURIComponent(account)}/stream`, location.href).pathname

let credential = ''
let leaving = new AbortController()

export const signedIn = () => credential !== ''

/** Remembers the credential for the calls from now on. */
export function signIn(token) {
	credential = token
}

/** Cancels the calls of a part of the page that was left. */
export function leave() {
	leaving.abort()
	leaving = new AbortController()
}

/** Forgets the credential, and cancels the calls that are under way. */
export function forget() {
	credential = ''
	leave()
}

/** How long an answer may take, in milliseconds. */
const patience = 30_000

export class Refused extends Error {
	constructor(status, message) {
		super(message)
		this.status = status
	}
}

/** Makes a call below stream, and returns its answer: result, messages, total. */
export async function answer(method, path, body) {
	const { signal } = leaving
	const timeout = AbortSignal.timeout(patience)
	let response, envelope
	try {
		response = await fetch(base + path, {
			method, signal: AbortSignal.any([signal, timeout]),
			headers: { Authorization: `Bearer ${credential}`, ...(body && { 'Content-Type': 'application/json' }) },
			body: body && JSON.stringify(body),
			cache: 'no-store', credentials: 'omit', redirect: 'error', referrerPolicy: 'no-referrer',
		})
		envelope = await response.json()
	} catch {
		if (signal.aborted) throw new DOMException('', 'AbortError')
		if (timeout.aborted || !response) {
			throw new Error(`The server does not answer. ${method === 'GET' ? 'Is it running, and are you connected?' : 'It may have made the change: look before you try again.'}`)
		}
	}
	if (!envelope?.success) {
		const message = envelope?.errors?.[0]?.message ?? `The server gave an answer that is not the control API’s, with the status ${response.status}.`
		if (response.status === 401) dispatchEvent(new CustomEvent('unauthorized'))
		throw new Refused(response.status, message)
	}
	return envelope
}

/** Makes a call, and returns its result. */
export const call = async (method, path, body) => (await answer(method, path, body)).result

/** Text as a part of a path or a query. */
export const part = encodeURIComponent

/** Names that the API does not take for videos. */
const reserved = ['keys', 'sessions', 'revocations', 'explain', 'refusals', 'gateway']

export const isVideoID = text => /^[A-Za-z0-9_-]{1,64}$/.test(text) && !reserved.includes(text)

/** The path of a video's calls. */
export function ofVideo(id) {
	if (!isVideoID(id)) throw new Error(`“${id}” cannot be the id of a video here: an id has 1 to 64 of A–Z a–z 0–9 _ -, and these names belong to the API: ${reserved.join(', ')}.`)
	return `/${part(id)}`
}
