// Elements, by DOM calls only: no text ever becomes markup. The policy of the page
// (require-trusted-types-for) holds that too.

/** Makes an element. Properties that begin with "on" are listeners, true is an empty attribute, false and null are none. */
export function el(tag, properties, ...children) {
	const element = document.createElement(tag)
	// Browsers write other fields to the disk, to restore them with the tab. Of a textarea, the form decides.
	if ('autocomplete' in element) element.autocomplete = 'off'
	for (const [name, value] of Object.entries(properties ?? {})) {
		if (name.startsWith('on')) element.addEventListener(name.slice(2), value)
		else if (value !== false && value != null) element.setAttribute(name, value === true ? '' : value)
	}
	element.append(...children.flat().filter(child => child != null && child !== false))
	return element
}

/** Makes an element with text of others, which may be of any language, direction and length. */
export const data = text => el('bdi', null, String(text ?? ''))

/** A button with a listener. While the listener's promise runs, the button does nothing. */
export function button(text, onclick, properties) {
	const made = el('button', { type: 'button', ...properties }, text)
	made.addEventListener('click', () => busy(made, onclick))
	return made
}

/** Runs an action of a button once at a time, and shows its error. */
export async function busy(element, action) {
	if (element.getAttribute('aria-disabled') === 'true') return
	element.setAttribute('aria-disabled', 'true') // and keeps the focus
	try {
		await action()
	} catch (error) {
		fail(error)
	} finally {
		element.removeAttribute('aria-disabled')
	}
}

/** Has screen readers say a text, and shows it for a while. */
export function say(text, isError = false) {
	const status = document.getElementById('status')
	status.replaceChildren(el('p', { class: isError ? 'error' : null }, text))
	clearTimeout(say.timer)
	say.timer = setTimeout(() => status.replaceChildren(), isError ? 15000 : 5000)
}

/** Says an error. One without a message is that of a page that was left. */
export function fail(error) {
	if (error.name !== 'AbortError') say(error.message, true)
}

let lastID = 0

/** A control with its label and, if there is one, a hint. */
export function field(label, control, hint, note) {
	control.id ||= `field-${++lastID}`
	const notes = [hint && el('p', { class: 'hint' }, hint), note].filter(Boolean)
	for (const each of notes) each.id ||= `field-${++lastID}`
	if (notes.length) control.setAttribute('aria-describedby', notes.map(each => each.id).join(' '))
	return el('div', { class: 'field' }, el('label', { for: control.id }, label), control, notes)
}

/** A checkbox or a radio button with its label beside it. */
export function choice(label, control, hint) {
	return el('label', { class: 'choice' }, control, el('span', null, label, hint && el('small', null, hint)))
}

/** Content that is hidden until somebody opens it. */
export function details(title, properties, ...content) {
	const summary = el('summary', { id: `field-${++lastID}` }, title)
	return el('details', { 'aria-labelledby': summary.id, ...properties }, summary, ...content)
}

/** A drop-down list of [value, text] pairs. */
export const select = (options, value, properties) =>
	el('select', properties, options.map(([option, text]) => el('option', { value: option, selected: option === value }, text)))

/** A table with a caption for screen readers. Rows are arrays of cells; the first of each is its header. */
export function table(caption, headings, rows) {
	const head = headings.map(text => el('th', { scope: 'col' }, text || el('span', { class: 'unseen' }, 'Actions')))
	const body = rows.map(cells => el('tr', null, cells.map((cell, i) =>
		i ? el('td', { 'data-label': headings[i] || null }, cell) : el('th', { scope: 'row' }, cell))))
	return el('table', null, el('caption', { class: 'unseen' }, caption), el('thead', null, el('tr', null, head)), el('tbody', null, body))
}

/** A dialog. make gets a function that closes it, and returns what is in it. */
export function dialog(title, make) {
	const heading = el('h2', { id: `field-${++lastID}` }, title)
	const box = el('dialog', { 'aria-labelledby': heading.id })
	const status = document.getElementById('status') // nothing outside a modal dialog is read out
	box.addEventListener('close', () => { document.body.append(status); box.remove() })
	box.append(heading, ...make(() => box.close()).filter(Boolean), status)
	document.body.append(box)
	box.showModal()
	return box
}

/** Asks before an action that cannot be undone. The focus is on the way back. */
export function confirm(title, text, verb, action) {
	dialog(title, close => [
		el('p', null, text),
		el('div', { class: 'actions' },
			button('Cancel', close, { autofocus: true }),
			button(verb, async () => { await action(); close() }, { class: 'danger' })),
	])
}

/** A text to copy. */
export function copyable(label, text, multiline) {
	const shown = multiline ? el('textarea', { readonly: true, rows: 4, spellcheck: 'false' }) : el('input', { readonly: true, spellcheck: 'false' })
	shown.value = text
	return el('form', { class: 'field copyable', onsubmit: event => event.preventDefault() },
		...field(label, shown).children, copyButton('Copy', () => text, { 'aria-label': `Copy ${label}` }))
}

/** A button that copies the text that a function returns. */
export const copyButton = (label, text, properties) =>
	button(label, async () => { await navigator.clipboard.writeText(text()); say('Copied.') }, properties)

/** A date in the form of the browser's language, with the exact one as title. */
export function date(text) {
	const at = new Date(text)
	if (!text || Number.isNaN(at.getTime())) return '–'
	return el('time', { datetime: at.toISOString(), title: at.toISOString() }, at.toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'short' }))
}
