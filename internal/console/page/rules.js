// An editor of access rules.

import { button, el, select } from './dom.js'

/** The types of rules: text, member with the values, an example, and the database that it needs. */
const types = {
	any: { text: 'any viewer' },
	'ip.src': { text: 'addresses', member: 'ip', example: '203.0.113.0/24, 2001:db8::/32' },
	'ip.geoip.country': { text: 'countries', member: 'country', example: 'DE, AT, CH', database: 'country' },
	'ip.geoip.asnum': { text: 'networks (ASN)', member: 'asn', example: '64500, 64501', database: 'asn' },
	'ip.anonymous': { text: 'anonymous networks', member: 'kinds', example: 'vpn, hosting, public_proxy, residential_proxy, tor; empty for all', database: 'anonymous' },
}

/** Numbers of an ASN rule stay text if they are none, and the server says so. */
const asValue = (type, text) => type === 'ip.geoip.asnum' && /^(AS)?\d{1,10}$/i.test(text) ? Number(text.replace(/^AS/i, '')) : text

/** Makes an editor of a list of rules. changed is called after each change; databases says which types work. */
export function rulesEditor(rules, changed, databases) {
	const list = el('ol', { class: 'rules' })
	const empty = el('p', { class: 'empty' }, 'No rules.')
	const update = () => {
		[...list.children].forEach((item, i) => item.setAttribute('aria-label', `Rule ${i + 1}`))
		empty.hidden = list.children.length > 0
		changed()
	}
	const usable = Object.entries(types).filter(([type, { database }]) => !database || databases[database] || rules.some(rule => rule.type === type))

	const add = rule => {
		const action = select([['allow', 'Allow'], ['block', 'Block']], rule.action, { 'aria-label': 'Action', onchange: update })
		const type = select(usable.map(([value, { text }]) => [value, text]), rule.type, { 'aria-label': 'Who' })
		const values = el('input', { 'aria-label': 'Values, with commas', spellcheck: 'false', oninput: update })
		values.value = (rule[types[rule.type]?.member] ?? []).join(', ')
		const showValues = () => {
			values.hidden = !types[type.value]?.member
			values.placeholder = types[type.value]?.example ?? ''
		}
		type.addEventListener('change', () => { values.value = ''; showValues(); update() })
		showValues()
		const move = by => {
			const items = [...list.children]
			const to = items.indexOf(item) + by
			if (to < 0 || to >= items.length) return
			items[to][by < 0 ? 'before' : 'after'](item)
			update()
		}
		const item = el('li', null, action, type, values, el('span', { class: 'tools' },
			button('↑', function () { move(-1) }, { 'aria-label': 'Move up', class: 'quiet' }),
			button('↓', function () { move(1) }, { 'aria-label': 'Move down', class: 'quiet' }),
			button('Remove', () => {
				const next = item.nextElementSibling ?? item.previousElementSibling
				item.remove()
				update();
				(next?.querySelector('select') ?? adding).focus()
			}, { class: 'quiet' })))
		item.rule = () => ({
			action: action.value, type: type.value,
			...(types[type.value].member && (values.value.trim() || type.value !== 'ip.anonymous') && {
				[types[type.value].member]: values.value.split(/[\s,]+/).filter(Boolean).map(text => asValue(type.value, text)),
			}),
		})
		list.append(item)
		return action
	}
	const adding = button('Add a rule', () => { const control = add({ action: 'block', type: 'any' }); update(); control.focus() })
	rules.forEach(add)
	empty.hidden = rules.length > 0
	return {
		element: el('div', { role: 'group', 'aria-label': 'Access rules' }, list, empty, adding),
		rules: () => [...list.children].map(item => item.rule()),
	}
}
