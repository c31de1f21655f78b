package integration

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"image"
	"image/draw"
	"image/png"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/dom"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/makiuchi-d/gozxing/qrcode/decoder"

	"github.com/signed-playback/caddy-signed-playback/token"
)

const withConsole = withAPI + "\n\t\tconsole"

// startConsole starts a gateway with a console and all that its sections need.
func startConsole(t *testing.T, app string) *gateway {
	t.Helper()
	addr := freeAddr(t)
	return start(t, startOrigin(t, anyVideo()), config{
		addr: addr, api: withConsole, gate: "player " + hlsJS(t),
		app: "public_url http://" + gateHost + ":" + port(addr) + "\nsessions on\n" + app,
	})
}

// openConsole opens the console of a gateway and signs in.
func openConsole(t *testing.T, g *gateway) *tab {
	t.Helper()
	p := openTab(t, watchPolicy)
	p.open(t, "http://"+g.api+"/console#constructor") // of another site, and of no section
	p.fill(t, "Bearer token", apiSecret)
	p.press(t, "button", "Sign in")
	p.with(t, "heading", "Videos", "function() {}")
	return p
}

// found returns the first element with a role and a name, as assistive technology has
// them, or "". An empty name is any.
func (p *tab) found(t *testing.T, role, name string) runtime.RemoteObjectID {
	t.Helper()
	document := must(chromedp.Call(p.ctx, dom.GetDocument, dom.GetDocumentParams{}))(t)
	tree, err := chromedp.Call(p.ctx, accessibility.QueryAXTree, accessibility.QueryAXTreeParams{
		NodeID: document.Root.NodeID, Role: role, AccessibleName: name,
	})
	if err != nil {
		return "" // the document is a new one
	}
	for _, node := range tree.Nodes {
		if node.Ignored {
			continue
		}
		object, err := chromedp.Call(p.ctx, dom.ResolveNode, dom.ResolveNodeParams{BackendNodeID: node.BackendDOMNodeID})
		if err == nil {
			return object.Object.ObjectID
		}
	}
	return ""
}

// with calls a function of JavaScript on the element with a role and a name, once it is
// there.
func (p *tab) with(t *testing.T, role, name, function string) (result string) {
	t.Helper()
	eventually(t, "there is a "+role+" "+name, func() bool {
		object := p.found(t, role, name)
		if object == "" {
			return false
		}
		byValue, gesture := true, true
		called, err := chromedp.Call(p.ctx, runtime.CallFunctionOn, runtime.CallFunctionOnParams{
			FunctionDeclaration: function, ObjectID: object, ReturnByValue: &byValue, UserGesture: &gesture,
		})
		if err != nil || called.ExceptionDetails != nil {
			return false
		}
		_ = json.Unmarshal(called.Result.Value, &result) // other types stay ""
		return true
	})
	return result
}

// press uses a button, a link, a checkbox or the like with the keyboard.
func (p *tab) press(t *testing.T, role, name string) {
	t.Helper()
	p.with(t, role, name, `function() { this.focus() }`)
	key := kb.Enter
	if role == "checkbox" || role == "radio" {
		key = " "
	}
	p.do(t, chromedp.KeyEvent(key))
}

// fill replaces the text of a field, by typing.
func (p *tab) fill(t *testing.T, name, text string) {
	t.Helper()
	role := "textbox"
	eventually(t, "there is a field "+name, func() bool {
		if p.found(t, role, name) == "" {
			role = map[string]string{"textbox": "searchbox", "searchbox": "textbox"}[role]
			return false
		}
		return true
	})
	p.with(t, role, name, `function() { this.focus(); this.select() }`)
	must(chromedp.Call(p.ctx, input.InsertText, input.InsertTextParams{Text: text}))(t)
}

// choose selects an option by its text.
func (p *tab) choose(t *testing.T, name, option string) {
	t.Helper()
	text, _ := json.Marshal(option)
	p.with(t, "combobox", name, `function() {
		this.value = [...this.options].find(option => option.text === `+string(text)+`).value
		this.dispatchEvent(new Event("input", { bubbles: true }))
		this.dispatchEvent(new Event("change", { bubbles: true }))
	}`)
}

// shot keeps a picture of the visible part of the page, with 32 shades of each color so that it stays small.
func (p *tab) shot(t *testing.T, file string, width, height int64, scheme string) {
	t.Helper()
	p.setScheme(t, scheme)
	p.do(t, chromedp.EmulateViewport(width, height))
	picture := must(chromedp.Call(p.ctx, page.CaptureScreenshot, page.CaptureScreenshotParams{}))(t)
	shown := must(png.Decode(bytes.NewReader(picture.Data)))(t)
	colors := image.NewRGBA(shown.Bounds())
	draw.Draw(colors, colors.Rect, shown, image.Point{}, draw.Src)
	for i, shade := range colors.Pix {
		colors.Pix[i] = shade>>3<<3 | shade>>5
	}
	var small bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	noError(t, encoder.Encode(&small, colors))
	if small.Len() > 100<<10 {
		t.Errorf("%s has %d bytes, which is too many for the documentation", file, small.Len())
	}
	noError(t, os.WriteFile(file, small.Bytes(), 0o644))
}

// The pictures of docs/console.md. This takes them again:
//
//	SCREENSHOTS=../docs go test -run TestConsoleScreenshots .
func TestConsoleScreenshots(t *testing.T) {
	t.Parallel()
	dir := cmp.Or(os.Getenv("SCREENSHOTS"), t.TempDir())
	g := startConsole(t, withCountries(t))
	g.mustCall(t, http.MethodPost, "stream/launch", `{"requireSignedURLs": false, "allowedOrigins": ["example.com", "*.example.org"], "meta": {"name": "The launch"},
		"accessRules": [{"type": "ip.geoip.country", "country": ["DE", "AT"], "action": "block"}]}`, nil)
	p := openConsole(t, g)
	p.press(t, "link", "launch")
	p.has(t, "Plays only on pages of")
	p.with(t, "button", "Save", "function() { this.focus() }")
	p.shot(t, filepath.Join(dir, "console-video.png"), 760, 1110, "light")

	blocked := mint(t, "launch", func(c *token.Claims) {
		c.AccessRules = json.RawMessage(`[{"type":"ip.geoip.country","country":["GB"],"action":"allow"},{"type":"any","action":"block"}]`)
	})
	for range 3 {
		g.get(t, "/"+blocked+"/manifest/video.m3u8", "Origin: https://example.com")
		g.get(t, "/"+mint(t, "launch", func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Hour) })+"/manifest/video.m3u8")
	}
	p.press(t, "link", "Why not")
	p.fill(t, "Playback URL", "http://"+gateHost+":"+port(g.addr)+"/"+blocked+"/manifest/video.m3u8")
	p.fill(t, "Origin of the page", "https://example.com")
	p.press(t, "button", "Explain")
	p.has(t, "Refused: ")
	p.press(t, "button", "Refresh")
	p.has(t, "token_expired")
	p.with(t, "heading", "Why not", "function() { this.focus() }")
	p.shot(t, filepath.Join(dir, "console-why.png"), 720, 800, "dark")
}

// has waits until the page shows a text.
func (p *tab) has(t *testing.T, text string) {
	t.Helper()
	quoted, _ := json.Marshal(text)
	defer func() {
		if t.Failed() {
			t.Logf("the page: %s", evaluate[string](t, p, "document.body.innerText"))
		}
	}()
	p.until(t, "the page shows "+text, "document.body.innerText.includes("+string(quoted)+")")
}

// A newcomer gets from a fresh start to a video that plays on their site and on no other,
// with the keyboard and without curl.
func TestConsoleNewcomer(t *testing.T) {
	t.Parallel()
	g, code := startConsole(t, ""), ""
	site := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte(code))
	}))
	began := time.Now()
	p := openTab(t, watchPolicy)
	p.open(t, "http://"+g.api+"/console#constructor") // of another site, and of no section
	p.fill(t, "Bearer token", "a-wrong-secret-of-the-tests")
	p.press(t, "button", "Sign in")
	p.has(t, "That is not a bearer token of this API.")
	p.fill(t, "Bearer token", apiSecret)
	p.press(t, "button", "Sign in")

	p.fill(t, "Video id or name", "demo")
	p.do(t, chromedp.KeyEvent(kb.Enter))
	p.with(t, "heading", "Videos / demo", "function() {}")
	p.press(t, "radio", "Open Everybody who knows the video’s id. Allowed origins, rules and schedule hold all the same.")
	p.fill(t, "Allowed origins", "https://shop.test")
	p.has(t, `allowed origin must not specify protocol: "https://shop.test"`)
	mine := "shop.media.test:" + portOf(site)
	p.fill(t, "Allowed origins", mine)
	p.has(t, "Plays only on pages of "+mine+".")
	p.press(t, "button", "Save")
	p.has(t, "Saved.")
	p.press(t, "link", "Make a link")
	p.choose(t, "Link", "Without a token, for an open video")
	p.press(t, "button", "Make the link")
	p.has(t, "The video has allowed origins.")
	code = p.with(t, "textbox", "Embed code", "function() { return this.value }")
	p.wantNothingKept(t, "a link")
	t.Logf("from the first look to the embed code: %s", time.Since(began))

	for host, want := range map[string]string{mine: "plays", "evil.media.test:" + portOf(site): "refused"} {
		visitor := openPage(t, "http://"+host)
		framed := visitor.inFrame
		got := ""
		eventually(t, "the player on "+host+" plays or is refused", func() bool {
			got = evaluate[string](t, visitor, `(() => {
				const video = document.querySelector("video"), alert = document.querySelector("[role=alert]")
				return video?.readyState > 0 ? "plays" : alert?.checkVisibility() ? "refused" : ""
			})()`, framed("http://"+gateHost+":"+port(g.addr)))
			return got != ""
		})
		if got != want {
			t.Errorf("on %s: %s, want %s", host, got, want)
		}
	}
}

// A video of the config file can be seen and not changed. The others keep the defaults that
// nobody has changed.
func TestConsoleChangesOnlyWhatIsChanged(t *testing.T) {
	t.Parallel()
	g := startConsole(t, "allowed_origins default.test\nvideo configured {\nrequire_signed_urls off\n}")
	p := openConsole(t, g)
	p.press(t, "link", "configured")
	p.has(t, "the config file has settings for the video")
	if open := evaluate[int](t, p, `document.querySelectorAll("form :is(input, textarea, select, button):enabled").length`); open > 0 {
		t.Errorf("%d controls can be used", open)
	}
	p.press(t, "link", "Videos")
	p.fill(t, "Video id or name", "demo")
	p.do(t, chromedp.KeyEvent(kb.Enter))
	p.fill(t, "Name", "A name")
	p.press(t, "button", "Save")
	p.has(t, "Saved.")
	stored := ""
	_ = filepath.WalkDir(filepath.Join(g.dir, "caddy"), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() && strings.Contains(readText(t, path), `"name":"videos/demo"`) {
			stored = readText(t, path)
		}
		return err
	})
	if !strings.Contains(stored, "A name") || strings.Contains(stored, "default.test") || strings.Contains(stored, "requireSignedURLs") {
		t.Errorf("the store has %s", stored)
	}
}

// hostileText is stored wherever the API stores text: markup, attributes, templates, scripts,
// and characters that turn the direction of text.
const hostileText = `"><img src=x onerror="alert(1)"><script>alert(2)</script>{{3}}javascript:alert(4)` + "\u202e\u2066"

// Attacks: a viewer, a signer or another operator stores markup where the console shows it; a
// program in the page looks for the credential; somebody finds the tab open.
func TestConsoleHostileTexts(t *testing.T) {
	t.Parallel()
	g := startConsole(t, "")
	quoted, _ := json.Marshal(hostileText)
	g.mustCall(t, http.MethodPost, "stream/demo", fmt.Sprintf(`{"meta": {"name": %s, %[1]s: %[1]s}, "creator": %[1]s}`, quoted), nil)
	g.mustCall(t, http.MethodPost, "stream/other", `{"meta": {"name": {"toString": 1}}}`, nil)
	viewer := strings.TrimSuffix(hostileText, "\u202e\u2066")
	compact := mint(t, "demo", func(c *token.Claims) { c.Viewer = viewer })
	g.get(t, "/"+compact+"/manifest/video.m3u8", "User-Agent: "+viewer)

	p := openConsole(t, g)
	seen := func(section string) {
		t.Helper()
		p.has(t, "onerror")
		if violations := evaluate[[]string](t, p, "violations"); len(violations) > 0 {
			t.Errorf("%s: the policy has blocked %v", section, violations)
		}
		if made := evaluate[int](t, p, "document.querySelectorAll('main img, main script, [onerror]').length"); made > 0 {
			t.Errorf("%s: text has become %d elements", section, made)
		}
		if found := evaluate[bool](t, p, `[document.documentElement.outerHTML, location.href, document.cookie, JSON.stringify({...localStorage}), JSON.stringify({...sessionStorage}),
			...[...document.querySelectorAll("input, textarea")].map(field => field.value)].some(text => text.includes("`+apiSecret+`"))`); found {
			t.Errorf("%s: the credential is in the document or in a store", section)
		}
		p.wantNothingKept(t, section)
		p.wantAccessible(t, section)
	}
	seen("the list of videos")
	p.fill(t, "Video id or name", "DEM")
	seen("a search")
	p.press(t, "link", "demo")
	p.with(t, "textbox", "Name", `function() { if (!this.value.includes("onerror")) throw this.value }`)
	p.fill(t, "Allowed origins", strings.ReplaceAll(viewer, " ", "/"))
	seen("the settings of a video")
	p.press(t, "link", "Watching")
	p.press(t, "link", "demo")
	seen("the sessions of a video")
	p.press(t, "link", viewer)
	p.has(t, "1 session of viewer "+viewer)
	seen("the sessions of a viewer")
	p.press(t, "link", "Why not")
	p.fill(t, "Playback URL", g.url("/"+compact+"/"+url.PathEscape("\"><img src=x onerror=alert(1)>")))
	p.press(t, "button", "Explain")
	p.has(t, "It plays.")
	seen("explain")

	// A tab that was left open.
	evaluate[bool](t, p, `(() => { const now = Date.now; Date.now = () => now() + 16 * 60 * 1000; return true })()`)
	p.has(t, "You were signed out after 15 minutes without use.")
	if left := evaluate[bool](t, p, `document.documentElement.outerHTML.includes("onerror")`); left {
		t.Error("after the end, the page still shows what only operators may see")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dialogs > 0 {
		t.Errorf("text has run as code: %d dialogs", p.dialogs)
	}
	for _, address := range p.requests {
		isOwn := strings.HasPrefix(address, "http://"+g.api+"/") || strings.HasPrefix(address, "data:") // Chromium's own icons
		if strings.Contains(address, apiSecret) || !isOwn {
			t.Errorf("the page has asked for %s", address)
		}
	}
}

// wantNothingKept checks that the browser writes no field to the disk, from which it restores tabs
// (CVE-2022-32969).
func (p *tab) wantNothingKept(t *testing.T, section string) {
	t.Helper()
	if kept := evaluate[int](t, p, `[...document.querySelectorAll("input, textarea, select")].filter(field => field.autocomplete !== "off" ||
		field.localName === "textarea" && field.form?.autocomplete !== "off").length`); kept > 0 {
		t.Errorf("%s: the browser keeps %d fields", section, kept)
	}
}

// wantAccessible checks what shows now, light and wide, dark and narrow: axe-core finds nothing wrong, each control has a
// name, and a narrow page does not scroll sideways.
func (p *tab) wantAccessible(t *testing.T, section string) {
	t.Helper()
	evaluate[bool](t, p, readText(t, "node_modules/axe-core/axe.min.js")+"; true")
	for scheme, width := range map[string]int64{"light": 1100, "dark": 360} {
		p.setScheme(t, scheme)
		p.do(t, chromedp.EmulateViewport(width, 800))
		// Frames of other origins have none of our pages.
		for _, violation := range evaluate[[]string](t, p, `axe.run(document, { iframes: false, preload: false, resultTypes: ["violations"] }).then(({ violations }) =>
			violations.flatMap(({ id, nodes }) => nodes.map(node => id + ": " + node.html + " " + node.failureSummary)))`) {
			t.Errorf("%s, %s, %d pixels wide: %s", section, scheme, width, violation)
		}
	}
	p.do(t, chromedp.EmulateViewport(360, 800))
	if width := evaluate[float64](t, p, "document.documentElement.scrollWidth"); width > 360 {
		t.Errorf("%s: %v pixels wide on a screen of 360", section, width)
	}
	p.do(t, chromedp.EmulateViewport(1100, 800))
	for _, role := range []string{"button", "link", "textbox", "searchbox", "combobox", "checkbox", "radio", "spinbutton", "table", "dialog", "group", "Details", "image"} {
		document := must(chromedp.Call(p.ctx, dom.GetDocument, dom.GetDocumentParams{}))(t)
		tree := must(chromedp.Call(p.ctx, accessibility.QueryAXTree, accessibility.QueryAXTreeParams{NodeID: document.Root.NodeID, Role: role}))(t)
		for _, node := range tree.Nodes {
			if !node.Ignored && (node.Name == nil || string(node.Name.Value) == `""`) {
				t.Errorf("%s: a %s has no name", section, role)
			}
		}
	}
}

// setScheme has the system prefer light or dark.
func (p *tab) setScheme(t *testing.T, scheme string) {
	t.Helper()
	must(chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	}))(t)
}

// Each section, without anything to show and with much of it: every control has a name, the contrast
// suffices, and nothing is wider than a phone. Sessions are extended and cut off, a leaked link is
// revoked and given back.
func TestConsoleSections(t *testing.T) {
	t.Parallel()
	g := startConsole(t, withCountries(t)+"\nmax_session 12h")
	p := openTab(t, watchPolicy)
	look := func(section, text string) {
		t.Helper()
		p.has(t, text)
		p.wantNothingKept(t, section)
		p.wantAccessible(t, section)
	}
	p.open(t, "http://"+g.api+"/console/")
	look("the sign-in", "Sign in")
	p.fill(t, "Bearer token", apiSecret)
	p.press(t, "button", "Sign in")
	look("no videos", "No video has settings yet")
	for section, text := range map[string]string{
		"Keys": "No keys yet.", "Link": "Make the link", "Watching": "Nobody is watching now.", "Revoked": "Nothing is revoked.", "Why not": "Nothing was refused.",
	} {
		p.press(t, "link", section)
		look("an empty "+section, text)
	}

	long := strings.Repeat("Long_video-id-", 4) + "12345678"
	g.mustCall(t, http.MethodPost, "stream/"+long, fmt.Sprintf(`{"meta": {"name": %q}, "allowedOrigins": ["%sexample.com", "*.example.org"],
		"accessRules": [{"type": "ip.geoip.country", "country": ["DE"], "action": "block"}, {"type": "any", "action": "allow"}]}`, strings.Repeat("A name without end ", 10), strings.Repeat("a-long-label.", 6)), nil)
	for i := range 203 {
		g.mustCall(t, http.MethodPost, fmt.Sprintf("stream/video-%d", i), `{"requireSignedURLs": false}`, nil)
	}
	p.press(t, "link", "Videos")
	look("many videos", "4 more. Type more of the id or the name.")
	p.fill(t, "Video id or name", long)
	p.press(t, "link", long)
	look("the settings of a video", "Plays only on pages of")
	p.fill(t, "Allowed origins", "https://shop.test")
	look("a mistake", "must not specify")
	p.press(t, "button", "Forget settings")
	look("a question", "Forget the settings of this video?")
	p.press(t, "button", "Cancel")
	p.press(t, "link", "Keys")
	p.press(t, "button", "Create a key")
	p.press(t, "button", "Show")
	look("a new key", "This is the only time")
	p.press(t, "button", "Done")
	look("keys", "Created")

	p.press(t, "link", "Link")
	p.fill(t, "Video id", "video-1")
	p.fill(t, "Viewer (uid)", "anna")
	p.press(t, "button", "Make the link")
	evaluate[bool](t, p, `document.querySelectorAll("details").forEach(one => one.open = true) ?? true`)
	look("a link", "Plays until")

	compact := g.mintToken(t, "video-1", `{"uid": "ben"}`)
	path := "/" + compact + "/manifest/video.m3u8"
	leaked := "http://" + gateHost + ":" + port(g.addr) + path
	for range 2 {
		g.get(t, path, "User-Agent: "+strings.Repeat("a-browser-with-a-long-name", 5))
	}
	var running []sessionView
	g.mustCall(t, http.MethodGet, "stream/sessions?uid=ben", "", &running)
	p.press(t, "link", "Watching")
	look("live counts", "watching now")
	p.press(t, "link", "video-1")
	p.press(t, "link", "ben")
	look("sessions", "2 sessions of viewer ben")
	p.press(t, "button", "Extend "+running[0].ID)
	p.choose(t, "Plays until", "24 hours from now")
	p.press(t, "button", "Extend")
	look("an extension beyond max_session", "which is max_session (12h0m0s) after the exp of the token")
	p.choose(t, "Plays until", "6 hours from now")
	p.press(t, "button", "Extend")
	p.has(t, "The session plays until")
	p.press(t, "button", "Cut off "+running[1].ID)
	look("the question before the end", "Cut off this session?")
	p.press(t, "button", "Cut off")
	p.has(t, "1 session of viewer ben")

	p.press(t, "link", "Revoked")
	p.has(t, "ended by the control API")
	p.fill(t, "Which", "https://"+gateHost+"/video-1/manifest/video.m3u8")
	p.press(t, "button", "Revoke")
	look("a link without a token", "There is no token in this text.")
	p.fill(t, "Which", leaked)
	p.press(t, "button", "Revoke")
	look("revocations", "Take back")
	wantVerdict(t, g, path, refusedFor("token_revoked"))
	p.press(t, "button", fmt.Sprintf("Take back Token %.8x", sha256.Sum256([]byte(compact))))
	p.has(t, "Taken back.")
	wantVerdict(t, g, path, plays)
	p.press(t, "link", "Watching")
	p.choose(t, "Sessions of", "a viewer (uid)")
	p.fill(t, "Id", "ben")
	p.press(t, "button", "Show")
	p.press(t, "link", "Revoke the links of this viewer")
	p.press(t, "button", "Revoke")
	p.has(t, "Links of the viewer ben")
	wantVerdict(t, g, path, refusedFor("token_revoked"))

	p.press(t, "link", "Why not")
	p.fill(t, "Playback URL", leaked)
	p.press(t, "button", "Explain")
	look("a refusal", "Refused: token_revoked")
}

// Another program reads the QR codes of the page, of every length and of hostile text.
func TestConsoleQRCodes(t *testing.T) {
	t.Parallel()
	g := startConsole(t, "")
	p := openPage(t, "http://"+g.api+"/console/")
	texts := []string{hostileText, "https://media.example.com/" + mint(t, "demo", nil) + "/iframe?title=" + strings.Repeat("%C3%A4", 20)}
	for length := 1; length <= 2953; length += 1 + length/25 {
		texts = append(texts, strings.Repeat("eyJhbGciOiJSUzI1NiJ9.", 150)[:length])
	}
	texts = append(texts, strings.Repeat("x", 2953))
	given, _ := json.Marshal(texts)
	for i, rows := range evaluate[[][]string](t, p, `import("./qr.js").then(({ qrModules }) =>
		`+string(given)+`.map(text => qrModules(text).map(row => row.map(dark => dark ? "1" : "0").join(""))))`) {
		modules := make([][]bool, len(rows))
		for y, row := range rows {
			for _, module := range row {
				modules[y] = append(modules[y], module == '1')
			}
		}
		read, err := decoder.NewDecoder().DecodeBoolMapWithoutHint(modules)
		if err != nil || read.GetText() != texts[i] {
			t.Fatalf("a text of %d bytes: %v", len(texts[i]), err)
		}
	}
	if tooLong := evaluate[bool](t, p, `import("./qr.js").then(({ qrModules }) => qrModules("x".repeat(2954)) === null)`); !tooLong {
		t.Error("a text that is too long gets a code")
	}
}

// An operator at one node acts on all of them, on a real Redis.
func TestConsoleOfAFleet(t *testing.T) {
	t.Parallel()
	redis := startRedis(t)
	node := func() *gateway { return startConsole(t, redis.option()) }
	here, there := node(), node()
	p := openConsole(t, here)

	p.press(t, "link", "Keys")
	p.press(t, "button", "Create a key")
	p.press(t, "button", "Show")
	p.wantNothingKept(t, "a new key")
	private := p.with(t, "textbox", "Private key", "function() { return this.value }")
	p.press(t, "button", "Done")
	ids := there.keyIDs(t)
	if len(ids) != 1 || !strings.Contains(p.with(t, "main", "", "function() { return this.innerText }"), ids[0]) {
		t.Fatalf("the other node has the keys %v", ids)
	}
	if evaluate[bool](t, p, fmt.Sprintf("document.documentElement.outerHTML.includes(%q) || [...document.querySelectorAll('input, textarea')].some(f => f.value)", private)) {
		t.Error("the private key is in the document after the dialog")
	}
	compact := signWith(t, apiKey{ID: ids[0], PEM: private}, "demo")
	started := there.get(t, "/"+compact+"/manifest/video.m3u8")
	session := "/" + compact + "/" + sessionInManifest.FindString(string(started.body)) + "manifest/video.m3u8"
	wantVerdict(t, there, session, plays)

	p.press(t, "link", "Watching")
	p.press(t, "link", "demo")
	p.has(t, "1 session of video demo")
	var running []sessionView
	there.mustCall(t, http.MethodGet, "stream/demo/sessions", "", &running)
	p.press(t, "button", "Cut off "+running[0].ID)
	p.press(t, "button", "Cut off")
	p.has(t, "The session is cut off.")
	eventually(t, "the session has ended at the other node", func() bool { return there.get(t, session).verdict() == sessionEnded })
	wantVerdict(t, there, "/"+compact+"/manifest/video.m3u8", plays)

	p.press(t, "link", "Keys")
	p.press(t, "button", "Revoke "+ids[0])
	p.press(t, "button", "Revoke")
	p.has(t, "The key is revoked.")
	eventually(t, "the key is revoked at the other node", func() bool {
		return there.get(t, "/"+compact+"/manifest/video.m3u8").verdict() == refusedFor("key_unknown")
	})
}

// Attacks by a page of another site in the operator's browser: it frames the console, reads it,
// or calls the API. And a player on the console's own host, which runs what its operator has
// configured, reaches for the page around it.
func TestConsoleAgainstOtherPages(t *testing.T) {
	t.Parallel()
	g := startConsole(t, "")
	evil := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = fmt.Fprintf(w, `<iframe src="http://%s/console/"></iframe>`, g.api)
	}))
	p := openPage(t, evil.URL)
	eventually(t, "the frame is blocked", func() bool { return p.logged("frame-ancestors") })
	for _, attempt := range []string{
		`fetch("http://%[1]s/console/console.js").then(r => r.text())`,
		`fetch("http://%[1]s/client/v4/accounts/any/stream/keys", {method: "POST", headers: {Authorization: "Bearer %[2]s"}})`,
		`fetch("http://%[1]s/client/v4/accounts/any/stream/keys", {method: "POST", mode: "no-cors", headers: {Authorization: "Bearer %[2]s"}}).then(() => fetch("x:"))`,
		`import("http://%[1]s/console/api.js")`,
		`new Promise((done, failed) => { const image = new Image(); image.onload = done; image.onerror = failed; image.src = "http://%[1]s/console/icon.svg" })`,
	} {
		script := fmt.Sprintf(attempt, g.api, apiSecret)
		if outcome := evaluate[string](t, p, script+`.then(() => "done", () => "failed")`); outcome != "failed" {
			t.Errorf("a page of another site can do this: %s", script)
		}
	}
	if keys := g.keyIDs(t); len(keys) > 0 {
		t.Errorf("a page of another site has made the keys %v", keys)
	}
}

// A player on the console's own host, which runs what its operator has configured, plays and has
// no access to the page around it.
func TestConsolePreviewOnTheSameHost(t *testing.T) {
	t.Parallel()
	o, addr := startOrigin(t, anyVideo()), freeAddr(t)
	site := "http://" + gateHost + ":" + port(addr)
	start(t, o, config{
		addr: addr, app: "public_url " + site, gate: "player " + hlsJS(t),
		site: "signed_playback_api {\n" + withConsole + "\n}\nreverse_proxy " + o.addr(),
	})
	p := openPage(t, site+"/console/#link/demo")
	p.fill(t, "Bearer token", apiSecret)
	p.press(t, "button", "Sign in")
	p.press(t, "button", "Make the link")
	p.has(t, "Plays until")
	eventually(t, "the preview asks for media", func() bool {
		return slices.ContainsFunc(o.uris(), func(uri string) bool { return strings.Contains(uri, ".m4s") || strings.Contains(uri, ".ts") })
	})
	if reached := evaluate[bool](t, p, `document.querySelector("iframe").contentDocument !== null`); reached {
		t.Error("the player and the console are of one origin")
	}
}

// With the keyboard alone: the order of the focus, a dialog that keeps it, and the way back.
func TestConsoleKeyboard(t *testing.T) {
	t.Parallel()
	p := openConsole(t, startConsole(t, ""))
	focused := func() string {
		return evaluate[string](t, p, `(element => element.getAttribute("aria-label") || element.labels?.[0]?.innerText || element.innerText)(document.activeElement)`)
	}
	p.with(t, "link", "Skip to the content", "function() { this.focus() }")
	for _, want := range []string{"Videos", "Keys", "Link", "Watching", "Revoked", "Why not", "Sign out", "Video id or name"} {
		p.do(t, chromedp.KeyEvent(kb.Tab))
		if got := focused(); got != want {
			t.Errorf("Tab leads to %q, want %q", got, want)
		}
		if seen := evaluate[string](t, p, `getComputedStyle(document.activeElement).outlineStyle`); seen != "solid" {
			t.Errorf("the focus on %q is not visible", want)
		}
	}
	p.press(t, "link", "Keys")
	p.has(t, "No keys yet.")
	if got := focused(); got != "Keys" {
		t.Errorf("in a new section, the focus is on %q", got)
	}
	p.press(t, "button", "Create a key")
	p.with(t, "dialog", "The new key", "function() {}")
	for range 12 {
		p.do(t, chromedp.KeyEvent(kb.Tab))
		if out := evaluate[bool](t, p, `document.activeElement !== document.body && !document.querySelector("dialog").contains(document.activeElement)`); out {
			t.Errorf("the focus leaves the dialog for %q", focused())
		}
	}
	p.do(t, chromedp.KeyEvent(kb.Escape))
	p.has(t, "You have neither saved nor copied the private half.")
	p.do(t, chromedp.KeyEvent(kb.Escape))
	eventually(t, "the dialog has closed", func() bool { return !evaluate[bool](t, p, `Boolean(document.querySelector("dialog"))`) })
	if got := focused(); got != "Create a key" {
		t.Errorf("after the dialog, the focus is on %q", got)
	}
}
