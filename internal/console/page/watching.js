// Who is watching: live counts, and the sessions of a video or of a viewer.

import { answer, call, ofVideo, part } from './api.js'
import { button, confirm, data, date, dialog, el, field, say, select, table } from './dom.js'

/** The lists are read again after so many milliseconds, while the page is visible. */
const interval = 5000

export async function watching(body, heading, selected, gateway) {
	if (!gateway.sessions) {
		body.append(el('p', { class: 'empty' }, 'Sessions are off, so nobody is counted. The global option `sessions on` counts them.'))
		return
	}
	const [kind, ...rest] = selected.split('/')
	const by = select([['video', 'a video'], ['viewer', 'a viewer (uid)']], kind)
	const name = el('input', { spellcheck: 'false', autocapitalize: 'off', required: true })
	name.value = rest.join('/')
	const form = el('form', { class: 'line', onsubmit: event => {
		event.preventDefault()
		location.hash = `watching/${by.value}/${part(name.value.trim())}`
	} }, field('Sessions of', by), field('Id', name), el('button', null, 'Show'))
	const summary = el('p', { role: 'status' })
	const list = el('div')
	body.append(form, summary, list)
	const load = name.value ? refresh => sessions(kind, name.value, gateway, refresh) : liveCounts
	await keepUp(body, list, summary, load)
}

/** Shows what load returns, again and again. The focus stays on the control with the same name. */
async function keepUp(body, list, summary, load) {
	const refresh = async () => {
		const { text, content } = await load(refresh)
		if (summary.textContent !== text) summary.textContent = text
		const focused = list.contains(document.activeElement) && document.activeElement.getAttribute('aria-label')
		list.replaceChildren(content)
		if (focused) [...list.querySelectorAll('[aria-label]')].find(each => each.getAttribute('aria-label') === focused)?.focus()
	}
	// The next call waits for the answer to the last one, however slow it is.
	const again = () => setTimeout(async () => {
		if (!body.isConnected) return
		if (document.visibilityState === 'visible' && !document.querySelector('dialog')) {
			await refresh().catch(error => { if (error.name !== 'AbortError') summary.textContent = `Not up to date. ${error.message}` })
		}
		again()
	}, interval)
	await refresh()
	again()
}

async function liveCounts() {
	const videos = await call('GET', '/sessions/live')
	const viewers = videos.reduce((sum, { liveViewers }) => sum + liveViewers, 0)
	return {
		text: viewers ? `${viewers} watching now` : 'Nobody is watching now.',
		content: videos.length ? table('Live viewers', ['Video', 'Watching now'], videos.map(({ video, liveViewers }) => [
			el('a', { href: `#watching/video/${part(video)}`, 'aria-label': video }, data(video)), String(liveViewers),
		])) : el('p', { class: 'empty' }, 'Videos that are playing appear here. The list is read again every 5 seconds.'),
	}
}

async function sessions(kind, name, gateway, refresh) {
	const path = kind === 'video' ? `${ofVideo(name)}/sessions?` : `/sessions?uid=${part(name)}&`
	const { result, total } = await answer('GET', `${path}include_counts=true&limit=200`)
	const rows = result.map(session => [
		session.uid ? el('a', { href: `#watching/viewer/${part(session.uid)}` }, data(session.uid)) : 'not named',
		el('a', { href: `#watching/video/${part(session.video)}` }, data(session.video)),
		date(session.started), date(session.lastSeen),
		data([session.country, session.network].filter(Boolean).join(' · ')), el('small', null, data(session.userAgent)),
		el('span', { class: 'tools' },
			gateway.maxSession > 0 && button('Extend', () => extend(session), { class: 'quiet', 'aria-label': `Extend ${session.id}` }),
			button('Cut off', () => cutOff(session, refresh), { class: 'quiet danger', 'aria-label': `Cut off ${session.id}` })),
	])
	const ofViewer = kind === 'viewer' && el('div', { class: 'actions end' },
		el('a', { href: `#revoked/uid/${part(name)}`, class: 'button danger' }, 'Revoke the links of this viewer'))
	return {
		text: `${total} ${total === '1' ? 'session' : 'sessions'} of ${kind} ${name}${Number(total) > rows.length ? `, of which these are the newest ${rows.length}` : ''}`,
		content: el('div', null, rows.length > 0 && table('Sessions', ['Viewer', 'Video', 'Started', 'Last seen', 'From', 'Browser', ''], rows), ofViewer),
	}
}

const cutOff = (session, refresh) => confirm('Cut off this session?',
	'The player stops with its next request, within two seconds on other nodes. With a link that is still valid, the viewer can start again; to prevent that, revoke the links of the viewer.',
	'Cut off', async () => {
		await call('DELETE', `/sessions/${part(session.id)}`)
		say('The session is cut off.')
		await refresh()
	})

/** Asks for how long a session may play on when its token has expired. */
const extend = session => dialog('Extend this session', close => {
	const lasts = select([1, 3, 6, 12, 24].map(hours => [String(hours), hours === 1 ? '1 hour from now' : `${hours} hours from now`]), '1', { autofocus: true })
	return [
		el('p', null, 'The session plays until this time, also if its token expires before. This replaces an earlier extension.'),
		field('Plays until', lasts),
		el('div', { class: 'actions' }, button('Cancel', close), button('Extend', async () => {
			const { until } = await call('POST', `/sessions/${part(session.id)}`, { until: Math.floor(Date.now() / 1000) + Number(lasts.value) * 3600 })
			close()
			say(el('span', null, 'The session plays until ', date(until * 1000), '.'))
		}, { class: 'primary' })),
	]
})
