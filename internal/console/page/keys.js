// Signing keys: the gateway keeps the public halves, and the private half is shown once.

import { call, part } from './api.js'
import { button, confirm, copyButton, data, date, dialog, el, say, table } from './dom.js'

export async function keys(body, heading) {
	const list = el('div')
	const load = async () => {
		const found = await call('GET', '/keys')
		list.replaceChildren(found.length ? table('Signing keys', ['Key id', 'Created', ''], found.map(key => [
			el('code', null, data(key.id)), date(key.created),
			button('Revoke', () => revoke(key.id, load), { class: 'quiet danger', 'aria-label': `Revoke ${key.id}` }),
		])) : el('p', { class: 'empty' }, 'No keys yet. You need one only if a program of yours signs tokens itself; links from this page are signed by the gateway’s own key.'))
	}
	body.append(
		el('p', { class: 'intro' }, 'A program with a private key can sign tokens for every video. Keys of key_file and jwks_url are not listed.'),
		el('div', { class: 'actions' }, button('Create a key', async () => { present(await call('POST', '/keys')); await load() }, { class: 'primary' })),
		list)
	await load()
}

const revoke = (id, then) => confirm('Revoke this key?',
	el('span', null, 'All tokens that the key ', el('code', null, data(id)), ' has signed stop playing at once, on all nodes. Nobody can take this back.'),
	'Revoke', async () => {
		await call('DELETE', `/keys/${part(id)}`)
		await then()
		say('The key is revoked.')
	})

/** Shows a new key. The private half is in the document only while it is shown. */
function present(key) {
	const shown = el('textarea', { readonly: true, rows: 5, spellcheck: 'false', hidden: true, 'aria-label': 'Private key' })
	const reveal = button('Show', () => {
		shown.hidden = !shown.hidden
		shown.value = shown.hidden ? '' : key.jwk
		reveal.textContent = shown.hidden ? 'Show' : 'Hide'
	})
	let saved = false
	const kept = () => { saved = true }
	const box = dialog('The new key', close => [
		el('p', null, 'Key id ', el('code', null, data(key.id))),
		el('p', null, 'This is the only time that the private half is shown. The gateway does not keep it, so save it now: in a secret store, not in a repository.'),
		el('div', { class: 'actions' },
			button('Save as file', () => { save(key); kept() }, { class: 'primary', autofocus: true }),
			copyButton('Copy JWK', () => { kept(); return key.jwk }),
			copyButton('Copy PEM', () => { kept(); return key.pem }),
			reveal),
		el('form', null, shown),
		el('div', { class: 'actions end' }, button('Done', () => mayClose() && close())),
	])
	const mayClose = () => {
		if (saved || shown.value) return true
		saved = true
		say('You have neither saved nor copied the private half. Do this again to close without it.', true)
		return false
	}
	box.addEventListener('cancel', event => mayClose() || event.preventDefault())
	box.addEventListener('close', () => {
		shown.value = ''
		key = null
	})
}

/** Saves a key in the form that keygen gives files. */
function save(key) {
	const url = URL.createObjectURL(new Blob([JSON.stringify({ id: key.id, pem: key.pem, jwk: key.jwk }, null, 2) + '\n'], { type: 'application/json' }))
	el('a', { href: url, download: `${key.id}.json` }).click()
	URL.revokeObjectURL(url)
}
