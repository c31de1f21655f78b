package integration

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// loginLink is a site whose links lead to a gate, after a real forward_auth to a login.
type loginLink struct {
	gate *gateway
	addr string
}

func startLoginLink(t *testing.T) *loginLink {
	t.Helper()
	login := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("Cookie") {
		case "session=ann":
			w.Header().Set("Remote-User", "ann")
		case "session=empty":
			w.Header().Set("Remote-User", "")
		case "session=guest": // may come in, without a name
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(login.Close)
	s := &loginLink{addr: freeAddr(t)}
	s.gate = start(t, startOrigin(t, nil), config{
		log: quiet, app: "sessions on\non_session_limit refuse_new", gate: "manifest live/main.m3u8",
		sites: `
		http://:` + port(s.addr) + ` {
			@watch path_regexp ^/watch/([A-Za-z0-9_-]+)$
			handle @watch {
				forward_auth ` + strings.TrimPrefix(login.URL, "http://") + ` {
					uri /auth
					copy_headers Remote-User
				}
				signed_playback_mint {
					video {re.1}
					uid {header.Remote-User}
					to manifest
					climit 2
				}
			}
			handle {
				error 404
			}
		}`,
	})
	return s
}

// want sends a request and checks its status. It returns the path of the link, if the request gets
// one: on this host, to the manifest of the gate, for ann.
func (s *loginLink) want(t *testing.T, name, request string, status int) (link string) {
	t.Helper()
	res := rawTo(t, s.addr, request)
	link = res.Header.Get("Location")
	if res.StatusCode != status || (link != "") != (status == http.StatusSeeOther) {
		t.Errorf("%s: %d to %q, want %d", name, res.StatusCode, link, status)
		return link
	}
	if status != http.StatusSeeOther {
		return ""
	}
	if res.Header.Get("Cache-Control") != "no-store" || res.Header.Get("Referrer-Policy") != "no-referrer" {
		t.Errorf("%s: the headers are %v", name, res.Header)
	}
	compact, isManifest := strings.CutSuffix(strings.TrimPrefix(link, "/"), "/live/main.m3u8")
	parsed, err := token.Parse(compact)
	if err != nil || !isManifest {
		t.Fatalf("%s: %q: %v", name, link, err)
	}
	if claims := parsed.Unverified(); claims.Viewer != "ann" || claims.VideoID != "vidA" || claims.SessionLimit != 2 {
		t.Errorf("%s: the claims are %+v", name, claims)
	}
	return link
}

// The attack: a client that may not come in, or comes in without a name or with its own, sends the
// header by which the login names users, in each way in which a server may read one.
func TestForgedUsers(t *testing.T) {
	t.Parallel()
	s := startLoginLink(t)
	for _, forged := range [][]string{
		nil,
		{"Remote-User: bob"},
		{"remote-user: bob"},
		{"REMOTE-USER:bob"},
		{"Remote-User: \tbob\t"},
		{"remote_user: bob"},
		{"Remote_User: bob"},
		{"HTTP_REMOTE_USER: bob"},
		{"Remote-User: bob", "Remote-User: eve"},
		{"Remote-User:", "remote-user: bob"},
		{"Remote-User: {http.request.host}"},
		{"Remote-User: bob", "Connection: Remote-User"},
		{"Remote-User: bob", "Connection: Cookie"},
		{"X-Forwarded-User: bob"},
		{"Authorization: Basic Ym9iOng="},
		{"X-Forwarded-Uri: /auth?user=bob"},
		{"X-Forwarded-For: 127.0.0.1"},
		{"X-Original-URL: /public"},
		{"Transfer-Encoding: chunked", "Trailer: Remote-User", "", "0", "Remote-User: bob"},
	} {
		for cookie, status := range map[string]int{"": 401, "session=guest": 403, "session=empty": 403, "session=ann": 303} {
			if slices.Contains(forged, "Connection: Cookie") { // the login gets no cookie
				status = 401
			}
			s.want(t, cookie+" with "+strings.Join(forged, ", "), rawGet("/watch/vidA", append([]string{"Cookie: " + cookie}, forged...)...), status)
		}
	}
}

// The attack: a request of a user who is logged in gets a link for something that is no video, or
// one that leads to another host, or a page of another site uses the user's login.
func TestRequestsForLinks(t *testing.T) {
	t.Parallel()
	s := startLoginLink(t)
	for _, tc := range []struct {
		name, method, target string
		header               []string
		want                 int
	}{
		{"a video", "GET", "/watch/vidA", nil, 303},
		{"a video in other letters", "GET", "/watch/vid%41", nil, 303},
		{"a query", "GET", "/watch/vidA?rd=//evil.test&uid=bob&to=https://evil.test", nil, 303},
		{"HEAD", "HEAD", "/watch/vidA", nil, 303},
		{"another host", "GET", "/watch/vidA", []string{"Host: evil.test"}, 303},
		{"another host of a proxy", "GET", "/watch/vidA", []string{"X-Forwarded-Host: evil.test", "X-Forwarded-Proto: https", "Forwarded: host=evil.test"}, 303},
		{"a whole URL", "GET", "http://evil.test/watch/vidA", nil, 303},
		{"a link on another site", "GET", "/watch/vidA", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Dest: document", "Sec-Fetch-Mode: navigate"}, 303},
		{"a prefetch", "GET", "/watch/vidA", []string{"Sec-Purpose: prefetch;prerender", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Dest: document"}, 303},
		{"a validator", "GET", "/watch/vidA", []string{"If-None-Match: *", "Range: bytes=0-0"}, 303},
		{"a frame in a page of another site", "GET", "/watch/vidA", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Dest: iframe", "Sec-Fetch-Mode: navigate"}, 403},
		{"a video in a page of another site", "GET", "/watch/vidA", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Dest: video", "Sec-Fetch-Mode: no-cors"}, 403},
		{"POST", "POST", "/watch/vidA", nil, 405},
		{"OPTIONS", "OPTIONS", "/watch/vidA", nil, 405},
		{"an invented method", "MINT", "/watch/vidA", []string{"X-HTTP-Method-Override: GET"}, 405},
		{"no video", "GET", "/watch/", nil, 404},
		{"a path below a video", "GET", "/watch/vidA/x", nil, 404},
		{"a slash", "GET", "/watch/vidA/", nil, 404},
		{"a video id that is too long", "GET", "/watch/" + strings.Repeat("a", 65), nil, 404},
		{"another host for a video", "GET", "/watch/evil.com", nil, 404},
		{"another host for a path", "GET", "//evil.test/watch/vidA", nil, 404},
		{"a host after the path", "GET", "/watch//evil.test", nil, 404},
		{"a user", "GET", "/watch/vidA@evil.test", nil, 404},
		{"an encoded slash", "GET", "/watch/a%2Fb", nil, 404},
		{"an encoded backslash", "GET", "/watch/%5Cevil", nil, 404},
		{"an encoded folder", "GET", "/watch/%2e%2e%2fvidA", nil, 404},
		{"a line break", "GET", "/watch/vidA%0d%0aSet-Cookie:x=1", nil, 404},
		{"a line break at the end", "GET", "/watch/vidA%0a", nil, 404},
		{"a zero", "GET", "/watch/vidA%00", nil, 404},
		{"a placeholder", "GET", "/watch/%7Bhttp.request.host%7D", nil, 404},
		{"letters beyond ASCII", "GET", "/watch/vid%CE%91", nil, 404},
	} {
		s.want(t, tc.name, rawRequest(tc.method, tc.target, append([]string{"Cookie: session=ann"}, tc.header...)...), tc.want)
	}
}

// All links of a user count together, whichever of them is played.
func TestLimitOfAUser(t *testing.T) {
	t.Parallel()
	s := startLoginLink(t)
	for i, want := range []verdict{plays, plays, refusedFor("session_limit")} {
		link := s.want(t, "a link", rawGet("/watch/vidA", "Cookie: session=ann"), http.StatusSeeOther)
		wantVerdict(t, s.gate, link, want, fmt.Sprintf("User-Agent: device %d", i))
	}
}

// A link plays in a frame and in a player of a page of the site. The gate refuses it alone if the
// video has allowed origins, because no page has led there. The attack: a page of another site loads
// links as frames and pictures, and begins playbacks in the user's name.
func TestLinksInPages(t *testing.T) {
	t.Parallel()
	pages := map[string]string{
		"/framed": `<iframe src="/watch/demo" allow="autoplay"></iframe>`,
		"/player": `<video muted></video><script src="/hls.min.js"></script><script>
			const hls = new Hls(); hls.loadSource("/play/demo"); hls.attachMedia(document.querySelector("video"))</script>`,
	}
	files := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hls.min.js" {
			http.ServeFile(w, r, hlsJS(t))
			return
		}
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<!doctype html><title>A page</title><link rel=icon href=data:,>"+pages[r.URL.Path])
	}))
	t.Cleanup(files.Close)
	const host = "www.media.test"
	addr, o := freeAddr(t), startOrigin(t, exampleMedia())
	site := "http://" + host + ":" + port(addr)
	gateAddr := freeAddr(t)
	g := start(t, o, config{
		addr: gateAddr, gate: "player " + hlsJS(t), app: "allowed_origins " + host + ":" + port(addr) + "\npublic_url http://" + gateHost + ":" + port(gateAddr),
		sites: "http://:" + port(addr) + ` {
			handle_path /watch/* {
				signed_playback_mint {
					video demo
					uid {host}
				}
			}
			handle_path /play/* {
				signed_playback_mint {
					video demo
					uid {host}
					to manifest
				}
			}
			reverse_proxy ` + strings.TrimPrefix(files.URL, "http://") + `
		}`,
	})
	pages["/evil"] = `<script>let done = 0</script><iframe onload="done++" src="` + site + `/watch/demo"></iframe>
		<iframe onload="done++" src="` + site + `/play/demo"></iframe><img onerror="done++" src="` + site + `/play/demo">
		<video onerror="done++" src="` + site + `/play/demo"></video>`

	t.Run("a page of another site", func(t *testing.T) {
		p := openTab(t)
		p.open(t, "http://evil.test:"+portOf(files)+"/evil")
		eventually(t, "everything has been answered", func() bool { return evaluate[int](t, p, "done") == 4 })
		if i := slices.IndexFunc(p.asked(), func(address string) bool { return strings.Contains(address, port(g.addr)) }); i >= 0 {
			t.Errorf("the page has led to %s", p.asked()[i])
		}
		o.wantUntouched(t)
	})
	t.Run("the link alone", func(t *testing.T) {
		p := openTab(t)
		p.open(t, "http://evil.test:"+portOf(files)+"/")
		p.do(t, chromedp.Navigate(site+"/watch/demo"))
		eventually(t, "the page says why", func() bool {
			return evaluate[bool](t, p, `!!document.body?.innerText.includes("origin_required")`)
		})
	})
	t.Run("a frame", func(t *testing.T) {
		o.take()
		openTab(t, noNativeHLS).open(t, site+"/framed")
		eventually(t, "the frame loads the manifest", func() bool { return slices.Contains(o.uris(), "/demo/manifest/video.m3u8") })
	})
	t.Run("a player", func(t *testing.T) {
		p := openTab(t)
		p.open(t, site+"/player")
		eventually(t, "the video plays", func() bool {
			return evaluate[bool](t, p, `(v => { v.play().catch(() => {}); return v.currentTime > 0.5 })(document.querySelector("video"))`)
		})
	})
}
