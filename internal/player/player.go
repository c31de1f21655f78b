// Package player is the page that plays a video in an iframe.
//
// The page is one document that loads only the video, and hls.js in browsers without
// native HLS. It is the same document for every video and every viewer. It finds the video
// by its own address, so the server never writes a viewer's input into the page.
package player

import (
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html"
	"net/http"
	"os"
	"strconv"
	"strings"
)

//go:embed page
var files embed.FS

// scriptFiles are the parts of the page's script in their order: a part may use at once
// what the parts before it declare.
var scriptFiles = []string{"address", "options", "words", "playback", "failures", "controls", "menus", "preview", "renewal", "messages", "start"}

// read returns the text of a file of the page.
func read(name string) string {
	text, err := files.ReadFile("page/" + name)
	if err != nil {
		panic(err) // the file is missing in the binary
	}
	return asParsed(string(text))
}

// script joins the parts of the page's script. They share one scope, and nothing of it is
// global.
func script() string {
	var b strings.Builder
	b.WriteString("(() => {\n'use strict';\nconst WORDS = " + read("words.json") + ";\n")
	for _, name := range scriptFiles {
		b.WriteString(read(name + ".js"))
	}
	b.WriteString("})();")
	return b.String()
}

// Page is the player page with the headers it must be served with. It is
// immutable.
type Page struct {
	html    []byte
	opening int         // how much of html is in front of the attributes of its first element
	policy  string      // the Content-Security-Policy less frame-ancestors
	refusal string      // the Content-Security-Policy of a refusal
	hlsJS   *scriptFile // nil without hls.js
}

// GetHLSJS is the command that leaves the file with hls.js in the current folder.
const GetHLSJS = "npm pack hls.js && tar -xzf hls.js-*.tgz --strip-components=2 package/dist/hls.min.js"

// ErrManifest refuses a manifest that the page cannot play.
var ErrManifest = errors.New("the player page plays HLS; give the path of a playlist, like master.m3u8")

// Load is New with the file of hls.js, "" for none.
func Load(file, manifestPath string) (page *Page, err error) {
	if file == "" {
		return New(nil, manifestPath)
	}
	script, err := os.ReadFile(file)
	if err == nil {
		page, err = New(script, manifestPath)
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w; want dist/hls.min.js of the npm package hls.js; this gets the file: %s", file, err, GetHLSJS)
	}
	return page, nil
}

// New prepares the page. hlsJS is the content of the hls.js file that the
// operator configured, nil for none. manifestPath is the escaped path of the playlist that
// the page plays, relative to the video: manifest/video.m3u8.
func New(hlsJS []byte, manifestPath string) (*Page, error) {
	if err := checkHLSJS(hlsJS); err != nil {
		return nil, err
	}
	style, script := read("page.css"), script()
	hasHLSJS, scripts := "no", hashSource(script)
	if hlsJS != nil {
		hasHLSJS, scripts = "yes", scripts+" 'self'"
	}
	document := strings.NewReplacer(
		"{{hls.js}}", hasHLSJS,
		"{{manifest}}", html.EscapeString(manifestPath),
		"{{style}}", style,
		"{{script}}", script,
	).Replace(read("page.html"))
	const element = "<html"
	p := &Page{
		html:    []byte(document),
		opening: strings.Index(document, element) + len(element),
		refusal: "default-src 'none'; script-src " + hashSource(script) + "; style-src " + hashSource(style) +
			"; img-src data:; base-uri 'none'; form-action 'none'",
		policy: strings.Join([]string{
			"default-src 'none'",
			"script-src " + scripts,
			"style-src " + hashSource(style),
			"media-src 'self' blob: data:",      // hls.js feeds the video from a blob, and text tracks from data
			"img-src 'self' https: http: data:", // a poster may be anywhere
			"connect-src 'self'",                // hls.js, and the question why a video is refused
			"worker-src blob:",                  // hls.js
			"base-uri 'none'",
			"form-action 'none'",
		}, "; "),
	}
	if hlsJS != nil {
		p.hlsJS = newScriptFile(hlsJS)
	}
	return p, nil
}

// asParsed returns text with the line ends of a browser's parser, because the browser
// hashes the parsed text. A checkout may have other line ends.
func asParsed(text string) string {
	return strings.ReplaceAll(text, "\r\n", "\n")
}

// hashSource is the CSP source of the one inline text with this content.
func hashSource(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// ServePage writes the page. frameAncestors is the value of the directive
// frame-ancestors; "" leaves it out, and any site may embed the page. session is the path
// segment of the session in which the page plays, "" for none.
func (p *Page) ServePage(w http.ResponseWriter, r *http.Request, frameAncestors, session string) {
	attributes := ""
	if session != "" {
		attributes = ` data-session="` + html.EscapeString(session) + `"`
	}
	p.setHeader(w.Header(), p.policyWith(frameAncestors), attributes)
	if r.Method != http.MethodHead {
		p.write(w, attributes)
	}
}

// ServeRefusal answers a refused request for the page with the page. It tells the viewer and
// the embedding page why, and its policy lets it load nothing. So any site may embed it.
func (p *Page) ServeRefusal(w http.ResponseWriter, reason string, status int) {
	attributes := ` data-refused="` + html.EscapeString(reason) + `" data-status="` + strconv.Itoa(status) + `"`
	p.setHeader(w.Header(), p.refusal, attributes)
	w.WriteHeader(status)
	p.write(w, attributes)
}

func (p *Page) setHeader(h http.Header, policy, attributes string) {
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", policy)
	// The address of the page contains the token. Other hosts, like that of a
	// poster, get none of it. The gate needs it to tell its own page.
	h.Set("Referrer-Policy", "same-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(p.html)+len(attributes)))
}

// write writes the page with attributes of its first element.
func (p *Page) write(w http.ResponseWriter, attributes string) {
	for _, part := range [][]byte{p.html[:p.opening], []byte(attributes), p.html[p.opening:]} {
		_, _ = w.Write(part) // the client has cancelled, or asks for the headers only
	}
}

// policyWith adds frame-ancestors to the policy. A value that would end the directive,
// and could allow more sites, allows none.
func (p *Page) policyWith(frameAncestors string) string {
	if frameAncestors == "" {
		return p.policy
	}
	if strings.ContainsFunc(frameAncestors, func(c rune) bool { return c < ' ' || c > '~' || c == ';' || c == ',' }) {
		frameAncestors = "'none'"
	}
	return p.policy + "; frame-ancestors " + frameAncestors
}

// ServeHLSJS serves hls.js, or 404 without hls.js.
func (p *Page) ServeHLSJS(w http.ResponseWriter, r *http.Request) {
	if p.hlsJS == nil {
		http.NotFound(w, r)
		return
	}
	p.hlsJS.serve(w, r)
}
