package integration

import (
	"fmt"
	"strings"
	"testing"
)

// faultyAPI gives the answers of the control API that a test chooses, instead of the server's.
const faultyAPI = `
	window.fault = ""
	const real = { fetch: fetch.bind(window), timeout: AbortSignal.timeout.bind(AbortSignal) }
	AbortSignal.timeout = ms => real.timeout(fault === "slow" ? 100 : ms)
	window.fetch = (address, options) => ({
		"bad gateway": async () => new Response("<h1>Bad gateway</h1>", { status: 502 }),
		"other token": () => real.fetch(address, { ...options, headers: { Authorization: "Bearer another-token" } }),
		"cut short": async () => new Response('{"result": [', { status: 200 }),
		hangs: () => new Promise((_, failed) => options.signal.addEventListener("abort", () => failed(options.signal.reason))),
	}[fault.replace("slow", "hangs")] ?? (() => real.fetch(address, options)))()`

// The server is slow, fails, restarts, or no longer accepts the token: the page says so and works
// again when the server does. Attacks: somebody goes back to the page, opens it in another tab, or
// writes a name of the API where a video belongs.
func TestConsoleFaults(t *testing.T) {
	t.Parallel()
	o, c := startOrigin(t, nil), config{addr: freeAddr(t), apiAddr: freeAddr(t), api: withConsole, app: "sessions on"}
	g := start(t, o, c)
	p := openTab(t, faultyAPI)
	fault := func(name string) { evaluate[bool](t, p, fmt.Sprintf("(window.fault = %q, true)", name)) }
	signIn := func() {
		t.Helper()
		p.fill(t, "Bearer token", apiSecret)
		p.press(t, "button", "Sign in")
		p.with(t, "button", "Sign out", "function() {}")
	}
	p.open(t, "http://"+g.api+"/console/#keys")
	signIn()
	p.has(t, "No keys yet.")
	for name, text := range map[string]string{
		"bad gateway": "an answer that is not the control API’s, with the status 502", "cut short": "an answer that is not the control API’s", "slow": "The server does not answer.",
	} {
		fault(name)
		p.press(t, "link", "Videos")
		p.has(t, text)
		fault("")
		p.press(t, "button", "Try again")
		p.has(t, "No video has settings yet")
		p.press(t, "link", "Keys")
		p.has(t, "No keys yet.")
	}
	fault("slow")
	p.press(t, "button", "Create a key")
	p.has(t, "It may have made the change: look before you try again.")
	fault("hangs")
	p.press(t, "link", "Videos")
	p.with(t, "heading", "Videos", `function() { if (this.parentElement.querySelector(".body").ariaBusy !== "true") throw "" }`)
	fault("")
	p.press(t, "link", "Watching")
	p.has(t, "Nobody is watching now.")
	fault("bad gateway")
	p.has(t, "Not up to date.")
	fault("")
	p.has(t, "Nobody is watching now.")

	g.kill(t)
	p.press(t, "link", "Why not")
	p.has(t, "The server does not answer.")
	c.dir = g.dir
	start(t, o, c)
	p.press(t, "button", "Try again")
	p.has(t, "Nothing was refused.")

	for _, name := range []string{"keys", "gateway", "..", "a/b", "%2e%2e"} {
		evaluate[bool](t, p, fmt.Sprintf("(location.hash = 'videos/' + %q, true)", name))
		p.has(t, "cannot be the id of a video")
		evaluate[bool](t, p, "(location.hash = 'watching', true)")
		p.has(t, "Nobody is watching now.")
	}
	evaluate[bool](t, p, "(location.hash = 'videos/demo', true)")
	p.fill(t, "Name", "a name that nobody else reads")
	fault("other token")
	p.press(t, "button", "Save")
	p.has(t, "The server no longer accepts this token.")
	fault("")
	signIn()
	p.fill(t, "Name", "a name that nobody else reads")
	p.open(t, "about:blank")
	evaluate[bool](t, p, "(history.back(), true)")
	p.with(t, "button", "Sign in", "function() {}")
	if left := evaluate[string](t, p, `document.documentElement.outerHTML + [...document.querySelectorAll("input")].map(field => field.value)`); strings.Contains(left, "nobody else") || strings.Contains(left, apiSecret) {
		t.Errorf("the way back leads to what was typed: %s", left)
	}
	signIn()
	evaluate[bool](t, p, "(window.other = open(location.href)) !== null")
	p.until(t, "another tab asks for the token", `Boolean(other.document.querySelector("input[type=password]"))`)
}
