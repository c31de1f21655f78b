// Videos: find one, and say who may watch it, where and when.

import { answer, call, isVideoID, ofVideo, part } from './api.js'
import { button, choice, confirm, data, date, el, fail, field, say, select, table } from './dom.js'
import { rulesEditor } from './rules.js'

export const videos = (body, heading, id, gateway) => id ? settings(body, heading, id, gateway) : list(body)

const nameOf = video => typeof video.meta?.name === 'string' ? video.meta.name : ''

/** How many videos a list shows. */
const longest = 200

async function list(body) {
	const { result: all, total, messages } = await answer('GET', '?include_counts=true')
	const found = el('div', { 'aria-live': 'polite' })
	const search = el('input', { type: 'search', spellcheck: 'false' })
	let asked = 0
	const show = async () => {
		const text = search.value.trim()
		const turn = ++asked
		// The page has the newest videos. The server looks for names among all of them.
		const more = text && Number(total) > all.length ? await call('GET', `?limit=${longest}&search=${part(text)}`) : []
		if (turn !== asked) return
		const matching = all.concat(more.filter(one => !all.some(known => known.uid === one.uid)))
			.filter(one => `${one.uid}\n${nameOf(one)}`.toLowerCase().includes(text.toLowerCase()))
		const unknown = isVideoID(text) && !matching.some(one => one.uid === text)
		found.replaceChildren(...[
			unknown && el('p', null, el('a', { href: `#videos/${part(text)}` }, 'Settings of ', data(text)), ' – a video without settings of its own.'),
			matching.length > 0 && table('Videos', ['Video', 'Name', 'Access', 'Sites', 'Changed'], matching.slice(0, longest).map(row)),
			!matching.length && el('p', { class: 'empty' }, text ? 'No video with settings has that in its id or name.' :
				'No video has settings yet: all have those of the config. Type the id of a video, the name of its folder at the origin, to give it some.'),
			matching.length > longest && el('p', null, `${matching.length - longest} more. Type more of the id or the name.`),
		].filter(Boolean))
	}
	search.addEventListener('input', () => show().catch(fail))
	body.append(el('form', { role: 'search', onsubmit: event => {
		event.preventDefault()
		if (isVideoID(search.value.trim())) location.hash = `videos/${part(search.value.trim())}`
	} }, field('Video id or name', search, 'The list has the videos with settings of their own. For any other, type its id and press Enter.')), ...messages.map(({ message }) => el('p', { class: 'warning' }, message)), found)
	await show()
}

const row = video => [
	el('a', { href: `#videos/${part(video.uid)}` }, data(video.uid)),
	data(nameOf(video) || '–'),
	video.requireSignedURLs ? 'Private' : 'Open',
	video.allowedOrigins.length ? data(video.allowedOrigins.slice(0, 3).join(', ') + (video.allowedOrigins.length > 3 ? ', …' : '')) : 'any',
	date(video.modified),
]

/** A time as an input of the browser's time zone has it, and back. */
const toLocal = text => {
	if (!text) return ''
	const at = new Date(text)
	return new Date(at - at.getTimezoneOffset() * 60000).toISOString().slice(0, 19)
}
const fromLocal = text => text ? new Date(text).toISOString() : null

async function settings(body, heading, id, gateway) {
	heading.replaceChildren(el('a', { href: '#videos' }, 'Videos'), ' / ', data(id))
	const video = await call('GET', ofVideo(id))
	const form = settingsForm(video, gateway)
	body.append(form.element)
	form.check(true)
}

/** The radio buttons of who may watch. */
function accessChoice(video, changed) {
	const radio = (value, checked) => el('input', { type: 'radio', name: 'access', value, checked, onchange: changed })
	const isPrivate = radio('private', video.requireSignedURLs)
	return {
		element: el('fieldset', null, el('legend', null, 'Who may watch'),
			choice('Private', isPrivate, 'Only with a signed link.'),
			choice('Open', radio('open', !video.requireSignedURLs), 'Everybody who knows the video’s id. Allowed origins, rules and schedule hold all the same.')),
		value: () => isPrivate.checked,
	}
}

/** The choice between the access rules of all videos and those of this one. */
function rulesChoice(video, changed, gateway) {
	const own = select([['all', 'As for all videos'], ['own', 'Rules of this video alone']], video.accessRules ? 'own' : 'all', { 'aria-label': 'Rules' })
	const editor = rulesEditor(video.accessRules ?? [], changed, gateway.databases)
	const show = () => { editor.element.hidden = own.value === 'all' }
	own.addEventListener('change', () => { show(); changed() })
	show()
	return {
		element: el('fieldset', null, el('legend', null, 'Access rules'),
			el('p', { class: 'hint' }, 'The first rule that matches decides: Block is final, Allow ends this list, and the rules of the token follow. No match: allowed.'), own, editor.element),
		value: () => own.value === 'all' ? null : editor.rules(),
	}
}

function settingsForm(video, gateway) {
	const id = video.uid
	const problem = el('p', { class: 'problem', role: 'alert' })
	const warnings = el('div')
	const origins = el('textarea', { rows: 4, spellcheck: 'false', autocapitalize: 'off', placeholder: 'example.com\n*.example.com' })
	origins.value = video.allowedOrigins.join('\n')
	const originsNote = el('p', { class: 'note', 'aria-live': 'polite' })
	const name = el('input', { maxlength: '200' })
	name.value = nameOf(video)
	const from = el('input', { type: 'datetime-local', step: '1' })
	const until = el('input', { type: 'datetime-local', step: '1' })
	from.value = toLocal(video.availableFrom)
	until.value = toLocal(video.availableUntil)

	let timer = 0
	const unsaved = el('span', { class: 'hint', hidden: true }, 'Not saved yet.')
	const changed = () => {
		unsaved.hidden = !Object.keys(edit()).length
		clearTimeout(timer)
		timer = setTimeout(() => check().catch(fail), 250)
	}
	const access = accessChoice(video, changed)
	const rules = rulesChoice(video, changed, gateway)
	const patterns = () => origins.value.split(/[\s,]+/).filter(Boolean)
	const typed = () => ({
		requireSignedURLs: access.value(), allowedOrigins: patterns(), accessRules: rules.value(),
		availableFrom: fromLocal(from.value), availableUntil: fromLocal(until.value),
		meta: name.value.trim() || nameOf(video) ? { ...video.meta, name: name.value.trim() } : undefined,
	})

	let saved = typed()
	/** The members that differ from what is saved. The others stay as they are, so that defaults stay defaults. */
	const edit = () => Object.fromEntries(Object.entries(typed()).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(saved[name])))

	const check = checker(id, edit, () => covers(patterns()), { origins, originsNote, problem, warnings })
	const save = async () => {
		clearTimeout(timer)
		if (!await check()) return form.querySelector('[aria-invalid=true]')?.focus()
		await call('POST', ofVideo(id), edit())
		saved = typed()
		unsaved.hidden = true
		say('Saved. It holds from the next request on.')
	}
	const form = el('form', { class: 'settings', onsubmit: event => { event.preventDefault(); submit.click() }, oninput: changed },
		access.element,
		el('fieldset', null, el('legend', null, 'Where it may be embedded'), field('Allowed origins', origins,
			'One in a line: example.com, *.example.com (with all below it), localhost:3000. Without any, every site may embed it.', originsNote)),
		rules.element,
		el('fieldset', null, el('legend', null, 'When'), el('div', { class: 'columns' }, field('Available from', from), field('Available until', until)),
			el('p', { class: 'hint' }, `Times are those of ${Intl.DateTimeFormat().resolvedOptions().timeZone}. Empty means no bound.`)),
		el('fieldset', null, el('legend', null, 'In this list'), field('Name', name)),
		warnings, problem)
	const submit = button('Save', save, { class: 'primary' })
	form.append(el('div', { class: 'actions' }, submit, el('a', { href: `#link/${part(id)}`, class: 'button' }, 'Make a link'), unsaved))
	return { element: el('div', null, form, otherActions(id, gateway)), check }
}

/** Returns a function that has the server read what is typed, as it would when it is saved, and shows what it says. */
function checker(id, edit, summary, { origins, originsNote, problem, warnings }) {
	let asked = 0
	return async isFirst => {
		const turn = ++asked
		let messages = [], error = null
		try {
			messages = (await answer('POST', `${ofVideo(id)}/check`, edit())).messages
		} catch (refused) {
			if (!refused.status || refused.status === 401) throw refused
			error = refused
		}
		if (turn !== asked) return false
		// The config file has settings for the video, which win.
		if (isFirst && error?.status === 403) origins.form.querySelectorAll('input, textarea, select, button').forEach(control => { control.disabled = true })
		const ofOrigins = Boolean(error && /allowed ?origin/i.test(error.message))
		origins.setAttribute('aria-invalid', String(ofOrigins))
		originsNote.textContent = ofOrigins ? error.message : summary()
		originsNote.classList.toggle('problem', ofOrigins)
		problem.textContent = error && !ofOrigins ? error.message : ''
		warnings.replaceChildren(...messages.map(({ message }) => el('p', { class: 'warning' }, message)))
		return !error
	}
}

/** Says in words where a video with these origins plays. */
function covers(patterns) {
	if (!patterns.length) return 'Any site may embed this video.'
	if (patterns.includes('*')) return 'Any site may embed this video; requests without an origin are refused.'
	return `Plays only on pages of ${patterns.map(pattern => pattern.startsWith('*.') ? `${pattern.slice(2)} with all hosts below it` : pattern).join(', ')}.`
}

const otherActions = (id, gateway) => el('div', { class: 'actions end' },
	button('Purge from caches', async () => { await call('POST', `${ofVideo(id)}/purge`); say('Purged on all nodes. The next requests get it from the origin.') }),
	button('Forget settings', () => confirm('Forget the settings of this video?',
		gateway.defaults.requireSignedURLs ? 'It then has the settings of the config, and plays only with a signed link.' :
			'It then has the settings of the config, and plays WITHOUT a signed link for everybody.', 'Forget', async () => {
			await call('DELETE', ofVideo(id))
			location.hash = 'videos'
			say('The settings are forgotten.')
		}), { class: 'danger' }))
