// The frame of the page: who is signed in, and which section is open.

import { call, forget, leave, signedIn, signIn } from './api.js'
import { busy, button, el, field, say } from './dom.js'
import { keys } from './keys.js'
import { link } from './link.js'
import { revoked } from './revoked.js'
import { videos } from './videos.js'
import { watching } from './watching.js'
import { why } from './why.js'

/** The page forgets the credential after so many milliseconds without use: somebody may have left the tab open. */
const idleLimit = 15 * 60 * 1000

/** Sections by the first part of the fragment. Each gets the part after it and the facts of the gateway, and returns what to show. */
const sections = {
	videos: ['Videos', videos],
	keys: ['Keys', keys],
	link: ['Link', link],
	watching: ['Watching', watching],
	revoked: ['Revoked', revoked],
	why: ['Why not', why],
}

const main = document.getElementById('main')
const nav = document.getElementById('sections')
const signOutButton = document.getElementById('sign-out')
let gateway = null // facts of the gateway
let lastUse = 0

for (const [name, [title]] of Object.entries(sections)) nav.append(el('a', { href: `#${name}` }, title))

function showSignIn(why) {
	document.title = 'Sign in – Signed Playback console'
	nav.hidden = signOutButton.hidden = true
	const token = el('input', { type: 'password', required: true, spellcheck: 'false' })
	const problem = el('p', { class: 'problem', role: 'alert' })
	const submit = el('button', { class: 'primary' }, 'Sign in')
	const form = el('form', { class: 'sign-in' },
		el('h2', null, 'Sign in'), why && el('p', null, why),
		field('Bearer token', token, 'One of bearer_token of signed_playback_api in the config. It stays in the memory of this page until you sign out, reload, or do nothing for 15 minutes.'),
		problem, submit)
	form.addEventListener('submit', event => {
		event.preventDefault()
		busy(submit, async () => {
			signIn(token.value.trim())
			token.value = ''
			problem.textContent = ''
			try {
				gateway = await call('GET', '/gateway')
			} catch (error) {
				forget()
				problem.textContent = error.status === 401 ? 'That is not a bearer token of this API.' : error.message
				token.focus()
				return
			}
			use()
			nav.hidden = signOutButton.hidden = false
			await show()
		})
	})
	main.replaceChildren(form)
	token.focus()
}

/** Forgets all that a person without the credential must not see. */
function signOut(why) {
	forget()
	gateway = null
	document.querySelectorAll('dialog').forEach(open => open.close())
	document.getElementById('status').replaceChildren()
	showSignIn(why)
}

/** Shows the section that the fragment names. */
async function show() {
	const [name, ...rest] = location.hash.slice(1).split('/')
	if (!signedIn()) return
	leave()
	const [title, section] = Object.hasOwn(sections, name) ? sections[name] : sections.videos // not #constructor
	for (const item of nav.children) {
		if (item.textContent === title) item.setAttribute('aria-current', 'page')
		else item.removeAttribute('aria-current')
	}
	document.title = `${title} – Signed Playback console`
	document.querySelectorAll('dialog').forEach(open => open.close())
	const heading = el('h2', { tabindex: '-1' }, title)
	const body = el('div', { class: 'body' })
	main.replaceChildren(el('section', { 'aria-label': title }, heading, body))
	heading.focus({ preventScroll: true })
	scrollTo(0, 0)
	let id = ''
	try {
		id = decodeURIComponent(rest.join('/'))
	} catch {
		// not a link of this page
	}
	try {
		body.ariaBusy = 'true'
		await section(body, heading, id, gateway)
	} catch (error) {
		if (error.name !== 'AbortError') {
			body.replaceChildren(el('p', { class: 'problem', role: 'alert' }, error.message), button('Try again', show))
		}
	} finally {
		body.ariaBusy = null
	}
}

function use() {
	lastUse = Date.now()
}

function checkUse() {
	if (signedIn() && Date.now() - lastUse > idleLimit) signOut('You were signed out after 15 minutes without use.')
}

for (const event of ['pointerdown', 'keydown', 'wheel']) {
	addEventListener(event, () => { checkUse(); use() }, { capture: true, passive: true })
}
setInterval(checkUse, 5000)
document.addEventListener('visibilitychange', checkUse) // timers of hidden tabs are late
addEventListener('pagehide', () => signOut()) // a page that the browser keeps for the way back keeps no credential
addEventListener('unauthorized', () => { if (gateway) signOut('The server no longer accepts this token.') })
addEventListener('hashchange', show)
document.querySelector('.skip').addEventListener('click', event => { event.preventDefault(); main.focus() }) // the fragment names the section
signOutButton.addEventListener('click', () => { signOut(); say('Signed out.') })
showSignIn()
