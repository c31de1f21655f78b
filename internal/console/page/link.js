// A link: a token with its claims, and what to do with it.

import { answer, call, ofVideo } from './api.js'
import { button, choice, copyable, data, date, details, el, field, say, select } from './dom.js'
import { qrCode } from './qr.js'
import { rulesEditor } from './rules.js'

const unixSeconds = text => Math.floor(new Date(text).getTime() / 1000)

export async function link(body, heading, id, gateway) {
	const gates = gateway.gates.filter(gate => gate.playback)
	if (!gates.length) throw new Error('The config has no gate whose address is known. Set public_url in the global options.')
	const result = el('div', { class: 'result', 'aria-live': 'polite' })
	const form = claimsForm(id, gateway, gates, async ({ video, gate, claims }) => {
		const settings = await call('GET', ofVideo(video))
		if (!claims && settings.requireSignedURLs) throw new Error('This video is private, so it does not play without a token.')
		const made = claims ? await answer('POST', `${ofVideo(video)}/token`, claims) : { messages: [] }
		result.replaceChildren(...results(made, gate, settings, claims))
		result.querySelector('h3').focus()
		say('The link is made.')
	})
	body.append(el('div', { class: 'split' }, form, result))
}

function claimsForm(id, gateway, gates, make) {
	const video = el('input', { required: true, pattern: '[A-Za-z0-9_\\-]{1,64}', spellcheck: 'false', autocapitalize: 'off' })
	video.value = id
	const gate = select(gates.map((each, i) => [String(i), each.playback]), '0')
	const signed = select([['token', 'Signed: with a token'], ['open', 'Without a token, for an open video']], 'token')
	const lasts = select([[3600, '1 hour'], [6 * 3600, '6 hours'], [12 * 3600, '12 hours'], [24 * 3600, '24 hours']], 3600)
	const viewer = el('input', { spellcheck: 'false', maxlength: '256' })
	const limit = el('input', { type: 'number', min: '1', inputmode: 'numeric' })
	const startBy = el('input', { type: 'datetime-local', step: '1' })
	const downloads = el('input', { type: 'checkbox' })
	const rules = rulesEditor([], () => {}, gateway.databases)
	const claims = () => ({
		exp: Math.floor(Date.now() / 1000) + Number(lasts.value), downloadable: downloads.checked,
		...(viewer.value && { uid: viewer.value }), ...(limit.value && { climit: Number(limit.value) }),
		...(startBy.value && { startBy: unixSeconds(startBy.value) }), ...(rules.rules().length && { accessRules: rules.rules() }),
	})
	const signedOnly = el('div', { class: 'signed' },
		field('Plays for', lasts),
		el('div', { class: 'columns' },
			field('Viewer (uid)', viewer, 'Who the link is for, in the lists of viewers.'),
			gateway.sessions && field('Sessions at a time (climit)', limit, 'Empty: no limit of this link.')),
		gateway.sessions && field('Start by', startBy, 'No playback begins after this time.'),
		choice('Downloads allowed', downloads),
		details('Access rules of this link', null, rules.element))
	signed.addEventListener('change', () => { signedOnly.hidden = signed.value === 'open' })
	const submit = button('Make the link', async () => {
		if (!form.reportValidity()) return
		await make({ video: video.value, gate: gates[gate.value], claims: signed.value === 'token' ? claims() : null })
	}, { class: 'primary' })
	const form = el('form', { onsubmit: event => { event.preventDefault(); submit.click() } },
		field('Video id', video, 'The name of its folder at the origin.'),
		gates.length > 1 && field('Gate', gate), field('Link', signed), signedOnly, el('div', { class: 'actions' }, submit))
	return form
}

/** The parameters of the player page: their names, labels, and inputs. */
const parameters = [
	['title', 'Title', {}],
	['poster', 'Poster', { placeholder: 'thumbnails/thumbnail.jpg' }],
	['startTime', 'Start at', { placeholder: '1m30s' }],
	['primaryColor', 'Colour of the controls', { placeholder: '#4c8dff' }],
	['letterboxColor', 'Colour around the video', { placeholder: 'black' }],
	['defaultTextTrack', 'Subtitles', { placeholder: 'de' }],
]
const switches = [['autoplay', 'Autoplay'], ['muted', 'Muted'], ['loop', 'Loop'], ['controls', 'Controls']]

function results(made, gate, settings, claims) {
	const name = made.result?.token ?? settings.uid
	const base = `${gate.playback}/${name}`
	const parts = [
		el('h3', { tabindex: '-1' }, 'Link to ', data(settings.uid)),
		el('p', null, claims ? el('span', null, 'Plays until ', date(new Date(claims.exp * 1000).toISOString()), '.') : 'Plays as long as the video is open.'),
		...made.messages.map(({ message }) => el('p', { class: 'warning' }, message)),
		copyable('Manifest URL', `${base}/${gate.manifest}`),
	]
	return gate.player ? [...parts, player(base, settings)] :
		[...parts, qr(`${base}/${gate.manifest}`), el('p', { class: 'hint' }, 'With the option player of signed_playback, the gate has a player page to embed and to preview here.')]
}

const qr = address => el('figure', null, qrCode(address, 'QR code of the link') ?? el('p', null, 'The link is too long for a QR code.'),
	el('figcaption', null, 'To open it on a phone or a TV. Who sees the code can play the video.'))

/** The player page: its parameters, the embed code, the preview. */
function player(base, settings) {
	const inputs = parameters.map(([name, label, properties]) => [name, label, el('input', { spellcheck: 'false', ...properties })])
	const boxes = switches.map(([name, label]) => [name, label, el('input', { type: 'checkbox', checked: name === 'controls' })])
	const preload = select([['', 'Metadata'], ['auto', 'As much as possible'], ['none', 'Nothing']], '')
	const shown = el('div')
	const address = () => {
		const query = new URLSearchParams()
		for (const [name, , input] of inputs) if (input.value.trim()) query.set(name, input.value.trim())
		for (const [name, , box] of boxes) if (box.checked !== (name === 'controls')) query.set(name, String(box.checked))
		if (preload.value) query.set('preload', preload.value)
		return `${base}/iframe${query.size ? `?${query}` : ''}`
	}
	const update = () => {
		const title = inputs[0][2].value.trim() || 'Video'
		shown.replaceChildren(preview(address(), title, settings), copyable('Page URL', address()), copyable('Embed code', embedCode(address(), title), true), qr(address()))
	}
	const options = details('Options of the player', { onchange: update },
		el('div', { class: 'columns' }, inputs.map(([, label, input]) => field(label, input)), field('Load before the start', preload)),
		el('div', { class: 'row' }, boxes.map(([, label, box]) => choice(label, box))))
	update()
	return el('div', null, options, shown)
}

const escaped = text => text.replace(/[&<>"]/g, c => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[c])

const embedCode = (address, title) => `<iframe src="${escaped(address)}" title="${escaped(title)}"
  width="640" height="360" style="border: 0"
  allow="autoplay; encrypted-media; fullscreen; picture-in-picture" allowfullscreen></iframe>`

function preview(address, title, settings) {
	const { origin } = new URL(address, location.href)
	if (origin !== document.documentElement.dataset.gateway) {
		return el('p', { class: 'hint' }, 'The preview needs public_url in the global options: this page shows players of that origin only.')
	}
	const elsewhere = settings.allowedOrigins.length > 0 && el('p', { class: 'hint' },
		'The video has allowed origins. The preview plays only if ', el('code', null, location.host), ' is one of them; so a refusal here can be right.')
	const frame = el('iframe', {
		title: `Preview: ${title}`, referrerpolicy: 'origin', allow: 'autoplay; encrypted-media; fullscreen; picture-in-picture',
		// On the console's own origin, the player must not reach this page.
		sandbox: origin === location.origin ? 'allow-scripts' : 'allow-scripts allow-same-origin',
		src: address,
	})
	return el('div', { class: 'preview' }, frame, elsewhere)
}
