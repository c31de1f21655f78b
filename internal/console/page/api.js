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

export class Refused extends Error {
	constructor(status, message) {
		super(message)
		this.status = status
	}
}

/** Makes a call below stream, and returns its answer: result, messages, total. */
export async function answer(method, path, body) {
	const { signal } = leaving
	let response
	try {
		response = await fetch(base + path, {
			method, signal,
			headers: { Authorization: `Bearer ${credential}`, ...(body && { 'Content-Type': 'application/json' }) },
			body: body && JSON.stringify(body),
			cache: 'no-store', credentials: 'omit', redirect: 'error', referrerPolicy: 'no-referrer',
		})
	} catch (error) {
		if (signal.aborted) throw new DOMException('', 'AbortError')
		throw new Error('The server does not answer. Is it running, and are you connected?')
	}
	const envelope = await response.json().catch(() => null)
	if (signal.aborted) throw new DOMException('', 'AbortError')
	if (!envelope?.success) {
		const message = envelope?.errors?.[0]?.message ?? `The server answered with the status ${response.status}.`
		if (response.status === 401) dispatchEvent(new CustomEvent('unauthorized'))
		throw new Refused(response.status, message)
	}
	return envelope
}

/** Makes a call, and returns its result. */
export const call = async (method, path, body) => (await answer(method, path, body)).result

/** An id as a part of a path. */
export const part = encodeURIComponent
