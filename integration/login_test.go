package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
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
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
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
	program, err := filepath.Abs(tool(t, "../bin/oauth2-proxy"))
	if err != nil {
		t.Fatal(err)
	}
	s := &loginSite{gateway: &gateway{addr: "localhost:" + port(freeAddr(t)), api: freeAddr(t), dir: t.TempDir(), log: newLogBuffer()}, issuer: startProvider(t)}
	s.url = "http://" + s.addr
	origin, proxy := freeAddr(t), freeAddr(t)
	media, err := filepath.Abs("../examples/media")
	if err != nil {
		t.Fatal(err)
	}
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

	login := &gateway{dir: t.TempDir(), log: newLogBuffer()}
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
	eventually(t, "the page says why it does not play", func() bool {
		return evaluate[bool](t, ann, `!!document.body?.innerText.includes("token_revoked")`)
	})
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
		res, err := browser.Get(s.url + "/logout")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if loggedOut := res.StatusCode == http.StatusOK; loggedOut != tc.logout {
			t.Errorf("%q: the logout ends with %d at %s", tc.user, res.StatusCode, res.Request.URL)
		}
	}
	path, _ := strings.CutPrefix(victim, "http://localhost:1")
	wantVerdict(t, s.gateway, path, plays)
	for _, refused := range []string{"a\x00b", strings.Repeat("a", 257), ""} {
		res, err := s.visitor(t, refused).Get(s.url + "/watch/demo")
		if err != nil {
			t.Fatal(err)
		}
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
	form, err := browser.Get(s.url + "/watch/demo")
	if err != nil {
		t.Fatal(err)
	}
	form.Body.Close()
	back, err := browser.PostForm(form.Request.URL.String(), url.Values{"name": {user}})
	if err != nil {
		t.Fatal(err)
	}
	back.Body.Close()
	return browser
}

func (s *loginSite) link(t *testing.T, browser *http.Client) string {
	t.Helper()
	res, err := browser.Get(s.url + "/watch/demo")
	if err != nil {
		t.Fatal(err)
	}
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
