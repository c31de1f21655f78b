package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/golang-jwt/jwt/v5"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// startProvider starts an OpenID Connect provider, which believes each name that somebody types
// into its form.
func startProvider(t *testing.T) (issuer string) {
	t.Helper()
	type login struct{ Name, Nonce string } // a code is such a login, encoded
	keys := publicJWKS(t, signingKey())
	mux := http.NewServeMux()
	server := serve(t, mux)
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"issuer": %q, "authorization_endpoint": "%[1]s/authorize", "token_endpoint": "%[1]s/token", "jwks_uri": "%[1]s/keys",
			"response_types_supported": ["code"], "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["RS256"]}`, server.URL)
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(keys) })
	mux.HandleFunc("GET /authorize", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, `<!doctype html><title>Log in</title><form method="post"><input name="name"><button>Log in</button></form>`)
	})
	mux.HandleFunc("POST /authorize", func(w http.ResponseWriter, r *http.Request) {
		code, _ := json.Marshal(login{r.FormValue("name"), r.FormValue("nonce")})
		back := url.Values{"code": {base64.RawURLEncoding.EncodeToString(code)}, "state": {r.FormValue("state")}}
		http.Redirect(w, r, r.FormValue("redirect_uri")+"?"+back.Encode(), http.StatusSeeOther)
	})
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		var user login
		code, _ := base64.RawURLEncoding.DecodeString(r.FormValue("code"))
		_ = json.Unmarshal(code, &user)
		now := time.Now()
		id := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{
			"iss": server.URL, "aud": "signed-playback", "sub": user.Name, "nonce": user.Nonce,
			"email": "user@example.com", "email_verified": true, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		})
		id.Header["kid"] = keyID
		signed, _ := id.SignedString(privateKey())
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"id_token": %q, "access_token": "access", "token_type": "Bearer", "expires_in": 3600}`, signed)
	})
	return server.URL
}

// loginSite is the example with a login, on ports of its own.
type loginSite struct {
	*gateway
	issuer string
	url    string
}

// startLoginSite starts the example as its comments say. The options are added to the
// global block.
func startLoginSite(t *testing.T, publicURL, options string) *loginSite {
	t.Helper()
	program := must(filepath.Abs(tool(t, "../bin/oauth2-proxy")))(t)
	s := &loginSite{gateway: &gateway{addr: "localhost:" + port(freeAddr(t)), api: freeAddr(t), dir: t.TempDir(), log: new(logBuffer)}, issuer: startProvider(t)}
	s.url = "http://" + s.addr
	origin, proxy := freeAddr(t), freeAddr(t)
	media := must(filepath.Abs("../examples/media"))(t)
	example := readText(t, "../examples/login.caddyfile")
	for old, replacement := range map[string]string{
		"public_url http://localhost:8080": "public_url " + publicURL + "\n" + options,
		"root examples/media":              "root " + media,
		"{\n\t# The response":              "{\nadmin off\n\t# The response",
	} {
		if strings.Count(example, old) != 1 {
			t.Fatalf("the example has not one %q", old)
		}
		example = strings.Replace(example, old, replacement, 1)
	}
	ports := strings.NewReplacer("localhost:8080", s.addr, ":8081", ":"+port(origin), ":9090", ":"+port(s.api), "127.0.0.1:4180", proxy)
	command := strings.ReplaceAll(example[strings.Index(example, "#\toauth2-proxy ")+len("#\toauth2-proxy "):strings.Index(example, " &\n")], "\\\n#", "")
	args := strings.Fields(strings.NewReplacer("<issuer>", s.issuer, "<id>", "signed-playback", "<secret>", "secret",
		"$(openssl rand -hex 16)", "0123456789abcdef0123456789abcdef", "'*'", "*").Replace(ports.Replace(command)))
	writeFile(t, filepath.Join(s.dir, "Caddyfile"), []byte(ports.Replace(example)))

	login := &gateway{dir: t.TempDir(), log: new(logBuffer)}
	login.launch(t, program, nil, login.log, "OAuthProxy configured", append(args, "--http-address", proxy)...)
	eventually(t, "oauth2-proxy listens", func() bool { return listens(proxy) })
	s.launch(t, binary(t), []string{"SIGNED_PLAYBACK_API_TOKEN=" + apiSecret}, s.log, "serving initial configuration", "run", "--config", "Caddyfile")
	return s
}

// logIn opens the link to a video, and logs in on the way.
func (s *loginSite) logIn(t *testing.T, p *tab, user string) {
	t.Helper()
	p.open(t, s.url+"/watch/demo")
	p.do(t, chromedp.SendKeys(chromedp.CSS("input"), user), chromedp.Click(chromedp.CSS("button")))
}

func (p *tab) address(t *testing.T) string {
	t.Helper()
	return evaluate[string](t, p, "location.href")
}

// A user logs in at a real provider on one node, and watches on another. After the logout, neither
// the link nor the open page plays. Other users notice nothing.
func TestLoginAndLogout(t *testing.T) {
	t.Parallel()
	redis := startRedis(t)
	node := start(t, startOrigin(t, exampleMedia()), config{app: redis.option(), gate: "player " + hlsJS(t)})
	gate := "http://localhost:" + port(node.addr)
	s := startLoginSite(t, gate, redis.option())
	watch := func(p *tab, user string) (link string) {
		t.Helper()
		eventually(t, user+" watches", func() bool {
			link = p.address(t)
			return strings.HasPrefix(link, gate+"/") &&
				evaluate[bool](t, p, `(v => { v?.play().catch(() => {}); return v?.currentTime > 0.5 })(document.querySelector("video"))`)
		})
		compact, _, _ := strings.Cut(strings.TrimPrefix(link, gate+"/"), "/")
		parsed, err := token.Parse(compact)
		if err != nil || parsed.Unverified().Viewer != user {
			t.Fatalf("%s watches with a token for %+v: %v", user, parsed, err)
		}
		return "/" + compact + "/manifest/video.m3u8"
	}
	ann, bob := openTab(t, noNativeHLS), openTab(t, noNativeHLS)
	s.logIn(t, ann, "ann")
	s.logIn(t, bob, "bob")
	link, other := watch(ann, "ann"), watch(bob, "bob")
	wantVerdict(t, s.gateway, link, plays)

	playing := ann.address(t)
	ann.open(t, s.url+"/")
	evaluate[bool](t, ann, "window.leaving = true")
	ann.do(t, chromedp.Click(chromedp.CSS(`a[href="/logout"]`)))
	eventually(t, "the logout, and the page after it", func() bool {
		return slices.Contains(ann.asked(), s.url+"/oauth2/sign_out") && evaluate[bool](t, ann, `!window.leaving && document.readyState === "complete"`)
	})
	revoked := refusedFor("token_revoked")
	wantVerdict(t, s.gateway, link, revoked)
	eventually(t, "the other node hears of the logout", func() bool { return node.get(t, link).verdict() == revoked })
	wantVerdict(t, node, other, plays)
	ann.open(t, playing)
	ann.until(t, "the page says why it does not play", `!!document.body?.innerText.includes("token_revoked")`)
	ann.open(t, s.url+"/watch/demo")
	if at := ann.address(t); !strings.HasPrefix(at, s.issuer+"/authorize?") {
		t.Errorf("after the logout, the link leads to %s without a login", at)
	}
	browser := s.visitor(t, "ann")
	eventually(t, "new links play, once the second of the logout is over", func() bool {
		path, _ := strings.CutPrefix(s.link(t, browser), gate)
		return node.get(t, path).verdict() == plays
	})
	s.logIn(t, ann, "ann")
	watch(ann, "ann")
}

// The attack: a user has a name that means something in JSON, to Caddy, in a header or in a URL. The
// link has the name as it is, or there is no link; and a logout revokes that user's tokens or fails.
func TestLoginOfHostileUsers(t *testing.T) {
	t.Parallel()
	s := startLoginSite(t, "http://localhost:1", "")
	victim := s.link(t, s.visitor(t, "ann"))
	for _, tc := range []struct {
		user   string
		logout bool // whether the logout works
	}{
		{"bob@example.com", true},
		{"auth0|5f7c8ec7c33c6c004bbafe82", true},
		{"ann,bob", false},
		{"jürgen", false},
		{`bob","video":"demo`, false},
		{`bob", "uid": "ann`, false},
		{`ann"}`, false},
		{`\u0061nn`, false},
		{"{env.SIGNED_PLAYBACK_API_TOKEN}", false},
		{"{http.request.host}", false},
		{"//evil.example", false},
		{"../ann", false},
	} {
		browser := s.visitor(t, tc.user)
		link := s.link(t, browser)
		if parsed, err := token.Parse(strings.Split(link, "/")[3]); err != nil || parsed.Unverified().Viewer != tc.user {
			t.Errorf("%q: the link is for %+v: %v", tc.user, parsed, err)
		}
		res := must(browser.Get(s.url + "/logout"))(t)
		res.Body.Close()
		if loggedOut := res.StatusCode == http.StatusOK; loggedOut != tc.logout {
			t.Errorf("%q: the logout ends with %d at %s", tc.user, res.StatusCode, res.Request.URL)
		}
	}
	path, _ := strings.CutPrefix(victim, "http://localhost:1")
	wantVerdict(t, s.gateway, path, plays)
	for _, refused := range []string{"a\x00b", strings.Repeat("a", 257), ""} {
		res := must(s.visitor(t, refused).Get(s.url + "/watch/demo"))(t)
		res.Body.Close()
		if res.StatusCode < 400 || res.Header.Get("Location") != "" {
			t.Errorf("%.10q is answered with %d to %q", refused, res.StatusCode, res.Header.Get("Location"))
		}
	}
}

// visitor is a browser in which a user has logged in. It does not follow the links to videos.
func (s *loginSite) visitor(t *testing.T, user string) *http.Client {
	t.Helper()
	jar, _ := cookiejar.New(nil)
	browser := &http.Client{Jar: jar, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if strings.HasSuffix(r.URL.Path, "/iframe") {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	form := must(browser.Get(s.url + "/watch/demo"))(t)
	form.Body.Close()
	back := must(browser.PostForm(form.Request.URL.String(), url.Values{"name": {user}}))(t)
	back.Body.Close()
	return browser
}

func (s *loginSite) link(t *testing.T, browser *http.Client) string {
	t.Helper()
	res := must(browser.Get(s.url + "/watch/demo"))(t)
	res.Body.Close()
	link := res.Header.Get("Location")
	if res.StatusCode != http.StatusSeeOther || !strings.HasSuffix(link, "/iframe") {
		t.Fatalf("the link is answered with %d to %q at %s", res.StatusCode, link, res.Request.URL)
	}
	return link
}

// The page shows how the example asks for the user, and what it does at a logout.
func TestPageHasTheLoginOfTheExample(t *testing.T) {
	t.Parallel()
	example := readText(t, "../examples/login.caddyfile")
	for _, part := range []string{`(?s)\n\(user\) \{.*?\n\}\n`, `(?s)\n\thandle /logout \{.*?\n\t\}\n`, `(?s)\n\thandle /oauth2/\* \{.*?\n\t\}\n`} {
		if text := regexp.MustCompile(part).FindString(example); text == "" || !strings.Contains(readText(t, "../docs/login.md"), text) {
			t.Errorf("the page has not %q of the example:\n%s", part, text)
		}
	}
}

// loginLink is a site whose links lead to a gate, after a real forward_auth to a login.
type loginLink struct {
	gate *gateway
	addr string
}

func startLoginLink(t *testing.T) *loginLink {
	t.Helper()
	login := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
// one that leads to another host, or a page of another site uses the user's login. TestMintRefuses has more.
func TestRequestsForLinks(t *testing.T) {
	t.Parallel()
	s := startLoginLink(t)
	for _, tc := range []struct {
		name, method, target string
		header               []string
		want                 int
	}{
		{"a video", "GET", "/watch/vidA", nil, 303},
		{"a query", "GET", "/watch/vidA?rd=//evil.test&uid=bob&to=https://evil.test", nil, 303},
		{"HEAD", "HEAD", "/watch/vidA", nil, 303},
		{"another host", "GET", "/watch/vidA", []string{"Host: evil.test", "X-Forwarded-Host: evil.test", "Forwarded: host=evil.test"}, 303},
		{"a whole URL", "GET", "http://evil.test/watch/vidA", nil, 303},
		{"a link on another site", "GET", "/watch/vidA", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Dest: document", "Sec-Fetch-Mode: navigate"}, 303},
		{"a frame in a page of another site", "GET", "/watch/vidA", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Dest: iframe", "Sec-Fetch-Mode: navigate"}, 403},
		{"POST", "POST", "/watch/vidA", nil, 405},
		{"no video", "GET", "/watch/", nil, 404},
		{"another host for a video", "GET", "/watch/evil.com", nil, 404},
		{"another host for a path", "GET", "//evil.test/watch/vidA", nil, 404},
		{"an encoded slash", "GET", "/watch/a%2Fb", nil, 404},
		{"a line break", "GET", "/watch/vidA%0d%0aSet-Cookie:x=1", nil, 404},
		{"a placeholder", "GET", "/watch/%7Bhttp.request.host%7D", nil, 404},
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
	files := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hls.min.js" {
			http.ServeFile(w, r, hlsJS(t))
			return
		}
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<!doctype html><title>A page</title><link rel=icon href=data:,>"+pages[r.URL.Path])
	}))
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
		p := openPage(t, "http://evil.test:"+portOf(files)+"/evil")
		eventually(t, "everything has been answered", func() bool { return evaluate[int](t, p, "done") == 4 })
		if i := slices.IndexFunc(p.asked(), func(address string) bool { return strings.Contains(address, port(g.addr)) }); i >= 0 {
			t.Errorf("the page has led to %s", p.asked()[i])
		}
		o.wantUntouched(t)
	})
	t.Run("the link alone", func(t *testing.T) {
		p := openPage(t, "http://evil.test:"+portOf(files)+"/")
		p.do(t, chromedp.Navigate(site+"/watch/demo"))
		p.until(t, "the page says why", `!!document.body?.innerText.includes("origin_required")`)
	})
	t.Run("a frame", func(t *testing.T) {
		o.take()
		openTab(t, noNativeHLS).open(t, site+"/framed")
		eventually(t, "the frame loads the manifest", func() bool { return slices.Contains(o.uris(), "/demo/manifest/video.m3u8") })
	})
	t.Run("a player", func(t *testing.T) {
		p := openPage(t, site+"/player")
		p.until(t, "the video plays", `(v => { v.play().catch(() => {}); return v.currentTime > 0.5 })(document.querySelector("video"))`)
	})
}
