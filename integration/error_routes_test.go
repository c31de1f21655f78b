package integration

import (
	"crypto/rand"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// reportingHeaders would have the browser report or store the viewer's URL.
var reportingHeaders = []string{
	"Nel", "Report-To", "Reporting-Endpoints", "Content-Security-Policy", "Referrer-Policy", "Set-Cookie", "Service-Worker-Allowed",
	"Signed-Playback-Reason", "X-" + rand.Text(),
}

// errorRoutes are ways to use handle_errors by which a server could answer a refused
// request after all. OTHER is a server that has a playlist under every path.
var errorRoutes = map[string]string{
	"proxy":                    "handle_errors {\nreverse_proxy OTHER\n}",
	"proxy for a class":        "handle_errors 4xx 5xx {\nreverse_proxy OTHER\n}",
	"proxy in front of encode": "encode\nhandle_errors {\nencode\nreverse_proxy OTHER\n}",
	"file server":              "handle_errors {\nroot MEDIA\nfile_server\n}",
	"file server that browses": "handle_errors {\nroot MEDIA\nfile_server browse\n}",
	"several routes":           "handle_errors {\nhandle_path /demo/* {\nreverse_proxy OTHER\n}\nhandle {\nreverse_proxy OTHER\n}\n}",
	"original URI":             "handle_errors {\nrewrite {http.request.orig_uri}\nreverse_proxy OTHER\n}",
	"original path":            "handle_errors {\nrewrite /x{http.request.orig_uri.path}{http.request.orig_uri.prefixed_query}\nreverse_proxy OTHER\n}",
	"headers": "handle_errors {\nreverse_proxy OTHER {\nheader_up X-A {http.request.orig_uri}\nheader_up X-B {uri}\nheader_up X-C {http.request.header.Referer}\n" +
		"header_up X-D {http.request.orig_uri.path.dir}\nheader_up X-E {http.request.orig_uri.path.0}\nheader_up X-F {query}\n}\n}",
	"matcher":      "handle_errors {\n@media path_regexp m ^/([^/]+)/(.*)$\nreverse_proxy @media OTHER {\nheader_up X-A {re.m.1}\n}\nreverse_proxy OTHER\n}",
	"named route":  "handle_errors {\ninvoke other\n}",
	"intercept":    "handle_errors {\nintercept {\nhandle_response {\nreverse_proxy OTHER\n}\n}\nrespond {uri} 200\n}",
	"tracing":      "tracing\nhandle_errors {\nreverse_proxy OTHER\n}",
	"forward_auth": "forward_auth OTHER {\nuri /login\n}\nhandle_errors {\nreverse_proxy OTHER\n}",
}

// The attack: an error route answers a request that the gate has refused, because
// Caddy restores the client's URL for error routes, or sends the token to a server
// that replaces a dead origin.
func TestErrorRoutes(t *testing.T) {
	t.Parallel()
	other := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/login" {
			for _, name := range reportingHeaders {
				w.Header().Set(name, "planted")
			}
			_, _ = w.Write([]byte("#EXTM3U\n"))
		}
	}))
	media := must(filepath.Abs("../examples/media"))(t)
	route := strings.NewReplacer("OTHER", other.addr(), "MEDIA", media)
	addresses := make(map[string]string)
	sites := "&(other) {\nreverse_proxy " + other.addr() + "\n}\n"
	for name, directives := range errorRoutes {
		addresses[name] = freeAddr(t)
		sites += site(addresses[name], "log\n"+route.Replace(directives)+"\nsigned_playback\nreverse_proxy "+freeAddr(t))
	}
	g := start(t, startOrigin(t, nil), config{sites: sites, env: []string{"OTEL_TRACES_EXPORTER=none"}})
	good := mint(t, "demo", nil)
	expired := mint(t, "demo", func(c *token.Claims) { c.ExpiresAt = time.Unix(1, 0) })
	for name, addr := range addresses {
		t.Run(name, func(t *testing.T) {
			for first, reason := range map[string]string{"demo": "token_required", expired: "token_expired", good: ""} {
				target := "/" + first + "/manifest/video.m3u8"
				res := rawTo(t, addr, rawGet(target+"?from="+target, "Referer: http://"+addr+target, "X-Original-URL: "+target, "X-Request-Id: "+target))
				if reason != "" && (res.StatusCode != reasonStatus[reason] || res.reason() != reason) {
					t.Errorf("got %d %q, want %q", res.StatusCode, res.reason(), reason)
				}
				for _, name := range reportingHeaders {
					if values := res.Header.Values(name); strings.Contains(strings.Join(values, ""), "planted") {
						t.Errorf("after %q, the page's %s passes", reason, name)
					}
				}
				if strings.Contains(string(res.body), "#EXTINF") {
					t.Errorf("%s is answered with the playlist", reason)
				}
				for _, seen := range other.take() {
					text := seen.uri
					for _, values := range seen.header {
						text += "\n" + strings.Join(values, "\n")
					}
					if strings.HasPrefix(seen.uri, "/login") {
						continue // it comes before the gate
					}
					if strings.Contains(seen.uri, "video") || strings.Contains(text, good) || strings.Contains(text, expired) {
						t.Errorf("the other server is told of the request: %.500s", text)
					}
				}
			}
		})
	}
	eventually(t, "the access log has the client's request to each site", func() bool { // the line follows the answer
		logged := 0
		for line := range strings.Lines(g.log.String()) {
			if strings.Contains(line, "handled request") && strings.Contains(line, `"uri":"/demo/manifest/video.m3u8?from=`) {
				logged++
			}
		}
		return logged == len(errorRoutes)
	})
}

// A page for refusals can come from a file, a template or another server. The status of
// the refusal stays.
func TestErrorPages(t *testing.T) {
	t.Parallel()
	pages := t.TempDir()
	writeFile(t, filepath.Join(pages, "error.html"), []byte(`page {{placeholder "http.error.status_code"}} {{placeholder "http.signed_playback.reason"}}`))
	server := startOrigin(t, http.FileServer(http.Dir(pages)))
	type page struct {
		route  string
		status int
		want   string
	}
	routes := map[string]page{
		"text":        {`respond "{err.status_code} {http.signed_playback.reason}"`, http.StatusUnauthorized, "401 token_required"},
		"status":      {`respond "gone" 410`, http.StatusGone, "gone"},
		"login page":  {`redir * /login`, http.StatusFound, ""},
		"file":        {"root " + pages + "\nrewrite /error.html\ntemplates\nfile_server", http.StatusUnauthorized, "page 401 token_required"},
		"proxied":     {"rewrite /error.html\nreverse_proxy " + server.addr(), http.StatusUnauthorized, "page {{placeholder"},
		"success":     {`respond "fine" 200`, http.StatusUnauthorized, "fine"},
		"no page":     {`header X-Page 1`, http.StatusUnauthorized, "token_required: "},
		"other error": {"@gone expression {err.status_code} == 404\nrespond @gone gone", http.StatusUnauthorized, "token_required: "},
		"empty":       {"respond 401", http.StatusUnauthorized, ""},
		"no content":  {"respond 204", http.StatusUnauthorized, ""},
		"not changed": {"respond 304", http.StatusUnauthorized, ""},
	}
	addresses := make(map[string]string)
	var sites string
	for name, tc := range routes {
		addresses[name] = freeAddr(t)
		sites += site(addresses[name], "handle_errors {\n"+tc.route+"\n}\nsigned_playback\nreverse_proxy "+server.addr())
	}
	start(t, server, config{sites: sites})
	for name, tc := range routes {
		t.Run(name, func(t *testing.T) {
			res := rawTo(t, addresses[name], rawGet("/demo/error.html"))
			if res.StatusCode != tc.status || res.reason() != "token_required" || !strings.HasPrefix(string(res.body), tc.want) {
				t.Errorf("got %d %q %q, want %d and %q", res.StatusCode, res.reason(), res.body, tc.status, tc.want)
			}
		})
	}
}

// A second origin answers for one that is dead or has lost a file, and the gate
// treats its responses as those of the first.
func TestFallbackOrigins(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Set-Cookie", "a=b")
		_, _ = w.Write([]byte("#EXTM3U\n#EXTINF:4,\n" + filepath.Dir(r.URL.Path) + "/1.ts\n"))
	}))
	empty := startOrigin(t, http.NotFoundHandler())
	for name, proxy := range map[string]string{
		"dead":    "reverse_proxy " + freeAddr(t) + " " + o.addr() + " {\nlb_policy first\nlb_retries 1\nfail_duration 10s\n}",
		"missing": "reverse_proxy " + empty.addr() + " {\n@missing status 404 5xx\nhandle_response @missing {\nreverse_proxy " + o.addr() + "\n}\n}",
	} {
		t.Run(name, func(t *testing.T) {
			g := start(t, o, config{site: proxy})
			token := mint(t, "demo", nil)
			res := g.get(t, "/"+token+"/manifest/video.m3u8?a=1")
			wantNoPartOf(t, "the second origin", strings.Join(o.uris(), " "), map[string]string{"the token": token})
			o.wantPassed(t, res, "/demo/manifest/video.m3u8?a=1")
			if got, want := string(res.body), "#EXTM3U\n#EXTINF:4,\n1.ts\n"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			if cookies := res.Header.Values("Set-Cookie"); len(cookies) != 0 || !strings.HasPrefix(res.Header.Get("Cache-Control"), "private") {
				t.Errorf("Set-Cookie %q and Cache-Control %q of the second origin", cookies, res.Header.Get("Cache-Control"))
			}
		})
	}
}
