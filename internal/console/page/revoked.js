// What is revoked: links, viewers, videos, tokens and sessions that the gate refuses.

import { answer, call, part } from './api.js'
import { button, data, date, el, field, say, select, table } from './dom.js'

/** What a revocation can be about, by its member in the API: what the list calls it, and the choice in the form with its hint. */
const kinds = {
	token: ['Token', 'a link', 'Its URL, or the token alone. Other links of the viewer still play.'],
	uid: ['Links of the viewer', 'all links of a viewer', 'The viewer (uid). Links that you make afterwards play.'],
	video: ['Links to the video', 'all links to a video', 'The id of the video. Links that you make afterwards play, and an open video plays without one.'],
	jti: ['Tokens with the jti', 'a token id (jti)', 'The jti of the token, as your program gave it.'],
	session: ['Session'],
}

/** How long a revocation lasts if the gateway does not know how long tokens last: a year, in seconds. */
const longest = 365 * 24 * 3600

/** A token in text. No host name has a label as long as a signature. */
const compact = /[\w-]+\.[\w-]+\.[\w-]{64,}/

export async function revoked(body, heading, selected, gateway) {
	const list = el('div', { class: 'stack' })
	const load = async () => list.replaceChildren(...await revocations(load))
	body.append(
		el('p', { class: 'intro' }, 'The gate refuses these from the next request on, on all nodes. Revoked keys are not listed: they stay revoked.'),
		form(selected, gateway, load), list)
	await load()
}

function form(selected, gateway, load) {
	const [first, ...rest] = selected.split('/')
	const kind = select(Object.entries(kinds).filter(([, [, text]]) => text).map(([name, [, text]]) => [name, text]), first)
	const value = el('input', { required: true, spellcheck: 'false', autocapitalize: 'off' })
	value.value = rest.join('/')
	const reason = el('input', { maxlength: '80' })
	const hint = el('p', { class: 'hint' })
	const explain = () => { hint.textContent = kinds[kind.value][2] }
	kind.addEventListener('change', explain)
	explain()
	const submit = button('Revoke', async () => {
		if (!made.reportValidity()) return
		const text = value.value.trim()
		const token = kind.value === 'token' && text.match(compact)
		if (kind.value === 'token' && !token) throw new Error('There is no token in this text. A link without one plays because its video is open.')
		await call('POST', '/revocations', {
			[kind.value]: token ? token[0] : text, ...(reason.value.trim() && { reason: reason.value.trim() }),
			...(!token && !gateway.maxTokenLifetime && { expires: Math.floor(Date.now() / 1000) + longest }),
		})
		value.value = reason.value = ''
		say('It is revoked.')
		await load()
	}, { class: 'danger' })
	const made = el('form', { class: 'panel', onsubmit: event => { event.preventDefault(); submit.click() } },
		el('div', { class: 'columns' }, field('Revoke', kind), field('Which', value, null, hint), field('Reason, for this list', reason)),
		el('div', { class: 'actions' }, submit))
	return made
}

async function revocations(load) {
	const { result, total } = await answer('GET', '/revocations?include_counts=true&limit=200')
	const rows = result.map(one => {
		const kind = Object.keys(kinds).find(name => one[name])
		const id = kind === 'token' ? one.token.slice(0, 16) : one[kind] // logs name tokens so
		return [
			el('span', null, `${kinds[kind][0]} `, data(id)),
			one.issuedBefore ? el('span', null, 'up to ', date(one.issuedBefore * 1000)) : '–',
			date(one.created), date(one.expires * 1000), data(one.reason || '–'),
			kind === 'session' ? '' : button('Take back', () => takeBack(one.id, load), { class: 'quiet', 'aria-label': `Take back ${kinds[kind][0]} ${id}` }),
		]
	})
	return [
		rows.length ? table('Revocations', ['What', 'Issued', 'Revoked', 'Ends', 'Reason', ''], rows) : el('p', { class: 'empty' }, 'Nothing is revoked.'),
		Number(total) > rows.length && el('p', { class: 'hint' }, `These are the newest ${rows.length} of ${total}.`),
	].filter(Boolean)
}

async function takeBack(id, load) {
	await call('DELETE', `/revocations/${part(id)}`)
	say('Taken back. What has not expired plays again.')
	await load()
}
