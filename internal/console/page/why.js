// Why a request is refused: explain for one, and counts of all.

import { call } from './api.js'
import { button, data, date, el, fail, field, select, table } from './dom.js'

const documentation = reason => el('a', {
	href: `https://github.com/signed-playback/caddy-signed-playback/blob/main/docs/reasons.md#${encodeURIComponent(reason)}`,
	target: '_blank', rel: 'noopener noreferrer',
}, data(reason))

export async function why(body) {
	const counts = el('div', { class: 'stack' })
	body.append(el('h3', null, 'One request'), explainForm(), el('h3', null, 'All refusals'), counts)
	await refusals(counts)
}

function explainForm() {
	const url = el('textarea', { rows: 3, required: true, spellcheck: 'false', autocapitalize: 'off', placeholder: 'https://media.example.com/eyJ…/manifest/video.m3u8' })
	const inputs = { ip: ['Address of the viewer', '203.0.113.7'], origin: ['Origin of the page', 'https://www.example.com'] }
	const fields = Object.entries(inputs).map(([name, [label, placeholder]]) => [name, label, el('input', { placeholder, spellcheck: 'false', autocapitalize: 'off' })])
	const at = el('input', { type: 'datetime-local', step: '1' })
	const outcome = el('div', { class: 'outcome', 'aria-live': 'polite' })
	const submit = button('Explain', async () => {
		if (!form.reportValidity()) return
		outcome.replaceChildren()
		const given = fields.filter(([, , input]) => input.value.trim()).map(([name, , input]) => [name, input.value.trim()])
		const found = await call('POST', '/explain', {
			url: url.value.trim(), ...Object.fromEntries(given), ...(at.value && { at: new Date(at.value).toISOString() }),
		})
		outcome.replaceChildren(...explained(found))
	}, { class: 'primary' })
	const form = el('form', { class: 'panel', onsubmit: event => { event.preventDefault(); submit.click() } },
		field('Playback URL', url, 'As the player asks for it. It is sent to the API of this site and kept nowhere.'),
		el('div', { class: 'columns' }, fields.map(([, label, input]) => field(label, input)), field('At', at)),
		el('div', { class: 'actions' }, submit), outcome)
	return form
}

const verdicts = { allowed: 'It plays.', preflight: 'A preflight: it is answered.', would_refuse: 'It plays, and would be refused if the check were enforced: ', refused: 'Refused: ' }
const outcomes = { pass: 'passes', refuse: 'refuses', report: 'would refuse', skipped: 'not reached' }

function explained(found) {
	const facts = [['Video', found.video], ['Token', found.token_id], ['Key', found.key_id], ['Address', found.client_ip], ['Country', found.country]]
	const rows = found.checks.map(check => [
		check.check, el('span', { class: `is-${check.outcome}` }, outcomes[check.outcome] ?? check.outcome),
		data((check.details ?? []).join('; ') || check.reason),
	])
	return [
		el('p', { class: found.allowed ? 'verdict good' : 'verdict problem' }, verdicts[found.result] ?? found.result, found.reason && documentation(found.reason), found.status && ` (${found.status})`),
		el('p', { class: 'hint' }, facts.filter(([, value]) => value).flatMap(([name, value], i) => [i ? ' · ' : '', `${name} `, data(value)])),
		table('Checks of the gate', ['Check', 'Outcome', 'Details'], rows),
		...(found.notes ?? []).map(note => el('p', { class: 'warning' }, note)),
	]
}

async function refusals(counts) {
	const hours = select([['1', 'this hour'], ['6', 'the last 6 hours'], ['24', 'the last 24 hours']], '24')
	const shown = el('div', { class: 'stack', 'aria-live': 'polite' })
	const load = async () => {
		const { since, hours: all } = await call('GET', '/refusals')
		const chosen = all.slice(-Number(hours.value))
		const sum = (kind, reason) => chosen.reduce((total, hour) => total + (hour[kind][reason] ?? 0), 0)
		const reasons = [...new Set(chosen.flatMap(hour => [...Object.keys(hour.refused), ...Object.keys(hour.wouldRefuse)]))]
			.sort((a, b) => sum('refused', b) - sum('refused', a) || sum('wouldRefuse', b) - sum('wouldRefuse', a) || a.localeCompare(b))
		shown.replaceChildren(
			reasons.length ? table('Refusals', ['Reason', 'Refused', 'Report only', 'By hour'], reasons.map(reason => [
				documentation(reason), String(sum('refused', reason)), String(sum('wouldRefuse', reason)),
				bars(chosen.map(hour => (hour.refused[reason] ?? 0) + (hour.wouldRefuse[reason] ?? 0))),
			])) : el('p', { class: 'empty' }, 'Nothing was refused.'),
			el('p', { class: 'hint' }, 'Counted by the node that answers, since ', date(since), '.'))
	}
	hours.addEventListener('change', () => load().catch(fail))
	counts.append(el('div', { class: 'line' }, field('In', hours), button('Refresh', load)), shown)
	await load()
}

/** A small chart. Screen readers have the sums beside it. */
function bars(values) {
	const highest = Math.max(...values, 1)
	const chart = document.createElementNS('http://www.w3.org/2000/svg', 'svg')
	chart.setAttribute('viewBox', `0 0 ${values.length * 5} 20`)
	chart.setAttribute('class', 'bars')
	chart.setAttribute('aria-hidden', 'true')
	values.forEach((value, i) => {
		const bar = document.createElementNS('http://www.w3.org/2000/svg', 'rect')
		const height = value ? Math.max(2, value / highest * 20) : 0.6
		for (const [name, set] of Object.entries({ x: i * 5, y: 20 - height, width: 4, height })) bar.setAttribute(name, set)
		chart.append(bar)
	})
	return chart
}
