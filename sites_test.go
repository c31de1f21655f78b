package signedplayback

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/routecheck"
)

// configServers returns the servers of a config in JSON.
func configServers(config []byte) (map[string]routecheck.Server, error) {
	var c struct {
		Apps struct {
			HTTP struct {
				Servers map[string]routecheck.Server `json:"servers"`
			} `json:"http"`
		} `json:"apps"`
	}
	err := json.Unmarshal(config, &c)
	if _, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		err = nil // a handler has a field of the same name and another type
	}
	return c.Apps.HTTP.Servers, err
}

// sitesOf returns the warnings about the sites of a Caddyfile, and the error.
func sitesOf(t *testing.T, adapted string) (warnings []string, err error) {
	t.Helper()
	servers, decodeErr := configServers([]byte(adapted))
	if decodeErr != nil {
		t.Fatalf("%v: %s", decodeErr, adapted)
	}
	for _, s := range servers {
		report, serverErr := routecheck.Check(s)
		if serverErr != nil {
			return nil, serverErr
		}
		for _, w := range report.Warnings {
			warnings = append(warnings, warningText(w.Site, w.Source, w.Text))
		}
	}
	return warnings, err
}

func warningText(site, source, text string) string {
	return strings.TrimPrefix(strings.Join([]string{site, source, text}, ": "), ": ")
}

const (
	quiet      = ""
	past       = "requests get past the gate"
	unreached  = "no request reaches the gate"
	nothing    = "nothing is behind the gate"
	mayChain   = "a request may pass two gates"
	noTokens   = "no request with a token passes the gate"
	executes   = "templates behind the gate"
	forgedUser = "a client can send the header"
	noPage     = "which no gate of the server has"
	chain      = "two gates in one chain"                      // an error
	cacheLeads = "signed_playback_cache comes before the gate" // an error
)

// sites are sites and what the check says about them.
var sites = map[string]string{
	// A cache that answers in place of the gate.
	"route {\nsigned_playback_cache\nsigned_playback\nreverse_proxy o:1\n}":                                 cacheLeads,
	"route {\nsigned_playback_cache /a/*\nhandle /a/* {\nsigned_playback\nreverse_proxy o:1\n}\n}":          cacheLeads,
	"route {\nsigned_playback_cache\nroute /b/* {\nuri strip_prefix /b\nsigned_playback\nfile_server\n}\n}": cacheLeads,

	// A gate that does not see all requests.
	"signed_playback /videos/*\nreverse_proxy o:1":                                                                        past,
	"@m path_regexp \\.ts$\nsigned_playback @m\nphp_fastcgi o:1":                                                          past,
	"@m header X-Player *\nsigned_playback @m\nfile_server":                                                               past,
	"@m not remote_ip 10.0.0.0/8\nsigned_playback @m\nreverse_proxy o:1":                                                  past,
	"@m expression `{path}.startsWith('/v')`\nsigned_playback @m\nreverse_proxy o:1":                                      past,
	"@m host a.example.com\nsigned_playback @m\nreverse_proxy o:1":                                                        unreached,
	"handle /videos/* {\nuri strip_prefix /videos\nsigned_playback\nreverse_proxy o:1\n}\nhandle {\nreverse_proxy o:1\n}": past,
	"handle /videos/* {\n@m path *.ts\nsigned_playback @m\nreverse_proxy o:1\n}\nhandle {\nrespond no\n}":                 past,
	"handle_path /v/* {\n@m path *.ts *.m3u8\nsigned_playback @m\nroot * /srv\nfile_server\n}":                            past,
	"root * /srv\nhandle /free/* {\nfile_server\n}\nhandle {\nsigned_playback\nfile_server\n}":                            past,
	"route {\nreverse_proxy /free/* o:1\nsigned_playback\nreverse_proxy o:1\n}":                                           past,
	"route {\nsigned_playback /v/*\nreverse_proxy o:1\n}":                                                                 past,
	"route /v/* {\nsigned_playback\n}\nreverse_proxy o:1":                                                                 past,
	"signed_playback /v/*\nhandle {\nroute {\nencode gzip\nreverse_proxy o:1\n}\n}":                                       past,
	"signed_playback /v/*\nreverse_proxy o:1 {\n@down status 5xx\nhandle_response @down {\nrespond down\n}\n}":            past,
	"signed_playback /v/*\ninvoke proxied":                                                                                past,
	"handle /v/* {\nsigned_playback\n}\nreverse_proxy o:1":                                                                past,
	"signed_playback /v/*\nreverse_proxy o:1 {\n@ok status 200\nhandle_response @ok {\ncopy_response\n}\n}":               past,
	"signed_playback /v/*\ntry_files {path} /index.html\nfile_server":                                                     past,

	"signed_playback /videos/*\nhandle /videos/* {\nreverse_proxy o:1\n}\nhandle {\nreverse_proxy app:1\n}": past,

	// The same upstream in another spelling, or in another pool.
	"handle /pub/* {\nreverse_proxy http://127.0.0.1:1\n}\nhandle {\nsigned_playback\nreverse_proxy [::1]:1\n}": past,
	"handle /pub/* {\nreverse_proxy o:1\n}\nhandle {\nsigned_playback\nreverse_proxy o:1 o:2\n}":                past,
	"handle /pub/* {\nreverse_proxy o:3 o:2\n}\nhandle {\nsigned_playback\nreverse_proxy o:1 o:2\n}":            past,

	// A root that contains the gate's root, or is inside of it.
	"handle_path /static/* {\nroot * /srv\nfile_server\n}\nhandle {\nroot * /srv/videos\nsigned_playback\nfile_server\n}":                                                          past,
	"handle_path /static/* {\nroot * /srv/videos/\nfile_server\n}\nhandle {\nroot * /srv/./videos\nsigned_playback\nfile_server\n}":                                                past,
	"handle_path /static/* {\nfile_server {\nroot /srv/videos/hd\n}\n}\nhandle {\nroot * /srv/videos\nsigned_playback\nfile_server\n}":                                             past,
	"handle_path /static/* {\nfile_server\n}\nhandle {\nroot * videos\nsigned_playback\nfile_server\n}":                                                                            past,
	"handle /videos/* {\nroot * /srv\nfile_server\n}\nhandle {\nroot * /srv/videos\nsigned_playback\nfile_server\n}":                                                               past,
	"@x header X *\nhandle @x {\nroot * /srv\nfile_server\n}\nhandle_path /videos/* {\nroot * /srv/videos\nsigned_playback\nfile_server\n}\nhandle {\nroot * /srv\nfile_server\n}": past,
	"handle_path /v/* {\nroot * /srv/videos\nsigned_playback\nfile_server\n}\nhandle {\nroot * /srv\nfile_server\n}":                                                               past,

	// Routes that answer in place of the gate.
	"route {\nintercept {\nhandle_response {\nreverse_proxy o:1\n}\n}\nsigned_playback\nreverse_proxy o:1\n}":                                   past,
	"route {\nintercept {\n@no status 403\nhandle_response @no {\nroot * /srv\nfile_server\n}\n}\nsigned_playback\nroot * /srv\nfile_server\n}": past,
	"handle /free/* {\nintercept {\nhandle_response {\nreverse_proxy o:1\n}\n}\nrespond ok\n}\nhandle {\nsigned_playback\nreverse_proxy o:1\n}": past,
	"handle /free/* {\nreverse_proxy o:1 {\nhandle_response {\ncopy_response\n}\n}\n}\nhandle {\nsigned_playback\nreverse_proxy o:1\n}":         past,

	// Error routes, which get requests with their path after an error before the gate.
	"basic_auth {\nu $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG\n}\nsigned_playback\nreverse_proxy o:1\nhandle_errors {\nreverse_proxy o:1\n}": past,
	"request_body {\nmax_size 1\n}\nsigned_playback\nreverse_proxy o:1\nhandle_errors 4xx {\nreverse_proxy o:2 o:1\n}":                                           past,
	"root * /srv\nsigned_playback\nfile_server\nhandle_errors {\nfile_server\n}":                                                                                 past,
	"root * /srv\nsigned_playback\nfile_server\nhandle_errors {\nrewrite * /public{uri}\nfile_server\n}":                                                         past,
	"signed_playback\nroot * /srv\nfile_server\nhandle_errors {\nroot * /srv\nfile_server\n}":                                                                    past,

	// The attack: an uploader's file has template actions.
	"signed_playback\ntemplates\nreverse_proxy o:1":                                     executes,
	"signed_playback\nroot * /srv\ntemplates *.html\nfile_server":                       executes,
	"handle_path /v/* {\nsigned_playback\nhandle {\ntemplates\nreverse_proxy o:1\n}\n}": executes,
	"templates {\nmime text/vtt\n}\nsigned_playback\nphp_fastcgi o:1":                   executes,
	"signed_playback\ntemplates\nforward_auth a:1 {\nuri /\n}\nreverse_proxy o:1":       executes,

	// A gate whose matcher demands a prefix where the token is expected.
	"signed_playback /v/*\nreverse_proxy o:1":                                                                                                       "; put the gate, without a matcher, and the handler behind it into one block handle_path /v/*",
	"handle /v/* {\nsigned_playback\nreverse_proxy o:1\n}":                                                                                          noTokens,
	"handle_path /v/* {\nsigned_playback /w/*\nreverse_proxy /w/* o:1\n}":                                                                           noTokens,
	"signed_playback /v/* {\norigin_path /v/{video}\n}\nreverse_proxy /v/hd/* o:1":                                                                  noTokens,
	"signed_playback /a/* {\norigin_path /a/{video}\n}\nsigned_playback /b/* {\norigin_path /b/{video}\n}\n@v path /a/* /b/*\nreverse_proxy @v o:1": noTokens,

	// A gate too late.
	"route {\nfile_server\nsigned_playback\nreverse_proxy o:1\n}":                     unreached,
	"redir https://example.com\nhandle {\nsigned_playback\nreverse_proxy o:1\n}":      unreached,
	"handle {\nreverse_proxy o:1\n}\nhandle {\nsigned_playback\nreverse_proxy o:1\n}": unreached,

	// Two gates.
	"signed_playback {\nplayer\n}\nsigned_playback\nreverse_proxy o:1":                                        chain,
	"signed_playback /v/* {\norigin_path /v/{video}\n}\nhandle /v/* {\nsigned_playback\nreverse_proxy o:1\n}": chain,
	"signed_playback\nhandle {\nsigned_playback\nreverse_proxy o:1\n}":                                        chain,
	"route {\nsigned_playback\nroute {\nsigned_playback\nfile_server\n}\n}":                                   chain,
	"signed_playback\ninvoke gated":                                                                           chain,
	"route {\nsigned_playback\n@a header X-A *\nsigned_playback @a\nreverse_proxy o:1\n}":                     mayChain,

	"@a path *.m3u8\nsigned_playback @a\nhandle_path /v/* {\nsigned_playback\nreverse_proxy o:1\n}": mayChain,
	"signed_playback /a/*\nhandle /a/b/* {\nsigned_playback\nreverse_proxy o:1\n}":                  mayChain,

	// Nothing to serve.
	"signed_playback": nothing,
	"handle /v/* {\nsigned_playback\n}\nhandle {\nreverse_proxy o:1\n}": nothing,

	// Nothing gets past the gate, or only on purpose.
	"signed_playback\nsigned_playback_cache\nreverse_proxy o:1": quiet,
	"handle /a/* {\nuri strip_prefix /a\nsigned_playback\nsigned_playback_cache\nreverse_proxy o:1\n}\nhandle {\nsigned_playback\nsigned_playback_cache {\nmemory 2MiB\n}\nreverse_proxy o:2\n}": quiet,
	"signed_playback\nreverse_proxy o:1":               quiet,
	"signed_playback\nroot * /srv\nfile_server browse": quiet,
	"signed_playback\nphp_fastcgi o:1":                 quiet,
	"signed_playback\nencode gzip\nheader X-A b\nlog\ntracing\nreverse_proxy o:1\nhandle_errors {\nreverse_proxy o:2\n}": quiet,
	"signed_playback\ntry_files {path} /none\nfile_server":                                                               quiet,
	"signed_playback\nrespond ok": quiet,
	"route {\nintercept {\nhandle_response {\nreverse_proxy o:2\n}\n}\nsigned_playback\nreverse_proxy o:1\n}":                    quiet,
	"signed_playback\nintercept {\nhandle_response {\nreverse_proxy o:1\n}\n}\nreverse_proxy o:1":                                quiet,
	"handle_path /videos* {\nroot * /srv/videos\nsigned_playback\nfile_server\n}\nhandle {\nroot * /srv\nfile_server\n}":         quiet,
	"handle_path /videos/* {\nroot * /srv/videos\nsigned_playback\nfile_server\n}\nhandle {\nroot * /srv\nfile_server\n}":        quiet,
	"handle_path /static/* {\nroot * /srv/static\nfile_server\n}\nhandle {\nroot * /srv/videos\nsigned_playback\nfile_server\n}": quiet,
	"handle /static/* {\nroot * /srv\nfile_server\n}\nhandle {\nroot * /srv/videos\nsigned_playback\nfile_server\n}":             quiet,
	"signed_playback\ntemplates\nrespond ok": quiet,
	"signed_playback\nreverse_proxy o:1\nhandle_errors {\ntemplates\nrewrite * /error.html\nfile_server\n}":                                                    quiet,
	"handle_path /v/* {\nsigned_playback\nreverse_proxy o:1\n}\ntemplates\nfile_server":                                                                        quiet,
	"route {\ntemplates\nsigned_playback\nreverse_proxy o:1\n}":                                                                                                quiet,
	"handle /pub/* {\nreverse_proxy localhost:2 127.0.0.2.example:1\n}\nhandle {\nsigned_playback\nreverse_proxy 127.0.0.1:1\n}":                               quiet,
	"handle /pub/* {\nreverse_proxy unix//run/A\n}\nhandle {\nsigned_playback\nreverse_proxy unix//run/a\n}":                                                   quiet,
	"root * /srv\nsigned_playback\nfile_server\nhandle_errors {\nrewrite * /{err.status_code}.html\nfile_server\n}":                                            quiet,
	"root * /srv\nsigned_playback\nfile_server\nhandle_errors {\nroot * /errors\nfile_server\n}":                                                               quiet,
	"signed_playback\n@hls path *.m3u8\nreverse_proxy @hls o:1\nfile_server":                                                                                   quiet,
	"handle /api/* {\nsigned_playback_api {\nbearer_token x\n}\n}\nhandle {\nsigned_playback\nreverse_proxy o:1\n}":                                            quiet,
	"signed_playback_api {\nbearer_token x\n}\nsigned_playback\nreverse_proxy o:1":                                                                             quiet,
	"handle_path /v/* {\nsigned_playback\nreverse_proxy o:1\n}\nhandle {\nreverse_proxy app:1\n}":                                                              quiet,
	"handle /v/* {\nuri strip_prefix /v\nsigned_playback\nreverse_proxy o:1\n}\nroot * /srv/www\nfile_server":                                                  quiet,
	"handle_path /a/* {\nsigned_playback\nreverse_proxy o:1\n}\nhandle_path /b/* {\nsigned_playback {\nplayer\n}\nreverse_proxy o:1\n}":                        quiet,
	"@a not path /v/*\nsigned_playback @a\nhandle_path /v/* {\nsigned_playback\nreverse_proxy o:1\n}\nhandle {\nreverse_proxy o:2\n}":                          quiet,
	"@hls path *.m3u8 *.ts\n@dash path *.mpd *.m4s\nsigned_playback @hls\nsigned_playback @dash {\nplayer\n}\nreverse_proxy @hls o:1\nreverse_proxy @dash o:1": quiet,
	"forward_auth auth:1 {\nuri /check\n}\nsigned_playback\nreverse_proxy o:1":                                                                                 quiet,
	"basic_auth {\nu $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG\n}\nsigned_playback\nreverse_proxy o:1":                                      quiet,
	"signed_playback\nreverse_proxy o:1 {\nhandle_response {\ncopy_response_headers\ncopy_response\n}\n}":                                                      quiet,
	"forward_auth auth:1 {\nuri /check\ncopy_headers Remote-User\n}\n@v not path /healthz\nrespond /healthz ok\nsigned_playback @v\nreverse_proxy o:1":         quiet,
	"redir /old /new\nrespond /ping ok\nabort /secret\nsigned_playback\nreverse_proxy o:1":                                                                     quiet,
	"@blocked remote_ip 192.0.2.0/24\nabort @blocked\nsigned_playback\nreverse_proxy o:1":                                                                      quiet,
	"route {\nhandle /static/* {\nroot * /srv/static\nfile_server\n}\nsigned_playback\nreverse_proxy o:1\n}":                                                   quiet,
	"invoke gated": quiet,
	"metrics /metrics\nsigned_playback\nreverse_proxy o:1": quiet,
	"reverse_proxy o:1": quiet,
}

// The attack: a viewer asks for a path that the gate's matcher does not match, and
// the handler behind the gate answers without a token. Other configs load without a word.
func TestSites(t *testing.T) {
	t.Parallel()
	for site, want := range sites {
		warnings, err := sitesOf(t, adaptSite(t, site))
		text := fmt.Sprint(warnings, err)
		silent := len(warnings) == 0 && err == nil
		if silent != (want == quiet) || !strings.Contains(text, want) || (err != nil) != (want == chain || want == cacheLeads) {
			t.Errorf("%s: %s, want %q", site, text, want)
		}
		if !silent && (!strings.Contains(text, "media.example.com") || !strings.Contains(text, "Caddyfile:")) {
			t.Errorf("%s: neither site nor line: %s", site, text)
		}
	}
}

const namedSite = "http://media.example.com"

// The examples are quiet.
func TestSitesOfExamples(t *testing.T) {
	t.Parallel()
	for _, file := range must(filepath.Glob("examples/*addyfile*")) {
		if warnings, err := sitesOf(t, adapt(t, string(must(os.ReadFile(file))))); len(warnings) > 0 || err != nil {
			t.Errorf("%s: %v %q", file, err, warnings)
		}
	}
}

// adaptSite adapts a site of namedSite.
func adaptSite(t *testing.T, site string) string {
	t.Helper()
	return adaptSites(t, namedSite+" {\n"+site+"\n}\n")
}

// adaptSites adapts sites beside others: one that proxies the same origin without a gate, and
// one without a host name.
func adaptSites(t *testing.T, sites string) string {
	t.Helper()
	return adapt(t, formatted("&(gated) {\nroute {\nsigned_playback\nreverse_proxy o:1\n}\n}\n&(proxied) {\nreverse_proxy o:1\n}\nhttp://open.example.com {\nreverse_proxy o:1\n}\n"+
		sites+"http://:8081 {\nfile_server\n}\n"))
}

// `caddy validate` says what the check of the JSON config says, although it meets
// routes that are provisioned in part. Sites without an error are in one config.
func TestSitesAreCheckedAtLoad(t *testing.T) {
	t.Parallel()
	var configs []string
	for _, address := range []string{namedSite, "http://"} { // without a name, Caddy provisions its routes one by one
		together := ""
		for i, site := range append(slices.Sorted(maps.Keys(sites)), slices.Sorted(maps.Keys(sitesWithLinks()))...) {
			text := fmt.Sprintf("%s:%d {\n%s\n}\n", address, 10_000+i, site)
			if want := sites[site]; want == chain || want == cacheLeads {
				configs = append(configs, adaptSites(t, text))
			} else {
				together += text
			}
		}
		configs = append(configs, adaptSites(t, together))
	}
	for _, adapted := range configs {
		want, wantErr := sitesOf(t, adapted)
		warned, err := validateWarnings(t, adapted, filepath.Join(t.TempDir(), "log"))
		if (err != nil) != (wantErr != nil) || err != nil && !strings.Contains(err.Error(), wantErr.Error()) {
			t.Errorf("%v, want %v", err, wantErr)
		}
		var got []string
		for _, w := range warned {
			got = append(got, warningText(w.Site, w.Gate, w.Msg))
		}
		slices.Sort(want)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("the warnings (-want +got):\n%s\nof %s", diff, adapted)
		}
	}
}

// sitesWithLinks are sites with links for users, and what the check says about them.
func sitesWithLinks() map[string]string {
	const (
		mint   = "signed_playback_mint {\nvideo demo\nuid {header.Remote-User}\n}\n"
		atPath = "signed_playback_mint /a/* {\nvideo demo\nuid {header.remote-user}\n}\n"
		login  = "o:2 {\nuri /auth\ncopy_headers Remote-User\n}\n"
		gate   = "\nsigned_playback /v/* {\nplayer\n}\nreverse_proxy /v/* o:1"
	)
	return map[string]string{
		mint + gate: forgedUser,
		"forward_auth o:2 {\nuri /auth\n}\n" + mint + gate:                                              forgedUser,
		"forward_auth o:2 {\nuri /auth\ncopy_headers Remote-Email Remote-Users\n}\n" + mint + gate:      forgedUser,
		"forward_auth o:2 {\nuri /auth\ncopy_headers X-User>Remote-User-Name\n}\n" + mint + gate:        forgedUser,
		"forward_auth /a/* " + login + mint + gate:                                                      forgedUser,
		"forward_auth /b/* " + login + atPath + gate:                                                    forgedUser,
		"route {\n" + mint + "forward_auth " + login + "}" + gate:                                       forgedUser,
		"request_header /a/* -Remote-User\n" + mint + gate:                                              forgedUser,
		"request_header +Remote-User x\n" + mint + gate:                                                 forgedUser,
		"header -Remote-User\n" + mint + gate:                                                           forgedUser,
		"@guests not remote_ip 10.0.0.0/8\nroute @guests {\n" + mint + "}" + gate:                       forgedUser,
		"reverse_proxy /a/* o:2\n" + mint + gate:                                                        forgedUser,
		"signed_playback_mint {\nvideo demo\nuid {http.auth.user.id}@{header.Tenant}\n}\n" + gate:       forgedUser,
		"forward_auth " + login + mint + gate:                                                           "",
		"forward_auth o:2 {\nuri /auth\ncopy_headers X-User>Remote-User\n}\n" + mint + gate:             "",
		"forward_auth /a/* " + login + atPath + gate:                                                    "",
		"@w path_regexp ^/a/\nforward_auth @w " + login + "handle @w {\n" + mint + "}" + gate:           "",
		"route {\nrequest_header -Remote-*\nforward_auth " + login + mint + "}" + gate:                  "",
		"request_header Remote-User {http.request.tls.client.subject}\n" + mint + gate:                  "",
		"@proxy remote_ip 10.0.0.0/8\nroute @proxy {\n" + mint + "}" + gate:                             "",
		"signed_playback_mint {\nvideo demo\nuid {http.auth.user.id}\n}\n" + gate:                       "",
		"forward_auth " + login + mint + "\nsigned_playback /v/*\nreverse_proxy /v/* o:1":               noPage,
		"forward_auth " + login + mint + "\nsigned_playback /v/* {\ntrust_origin_iframe\n}\nrespond ok": "",
	}
}

// The attack: a client names the user itself, in a header that no handler before the link has set or
// removed.
func TestSitesWithLinks(t *testing.T) {
	t.Parallel()
	for site, want := range sitesWithLinks() {
		warnings, err := sitesOf(t, adaptSite(t, site))
		warnings = slices.DeleteFunc(warnings, func(text string) bool {
			return !strings.Contains(text, forgedUser) && !strings.Contains(text, noPage)
		})
		if text := strings.Join(warnings, "\n"); err != nil || (want == "") != (text == "") || !strings.Contains(text, want) {
			t.Errorf("%s: %q, %v, want %q", site, text, err, want)
		}
	}
}
