package routecheck

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// serverOf reads routes, one a line: the matchers, `-` for none, and the handlers. A matcher is its name
// and its values, like path=/a/*,/b/*, with ! in front if it must not match.
func serverOf(t *testing.T, text string) (s Server) {
	t.Helper()
	for line := range strings.SplitSeq(text, "\n") {
		words := strings.Fields(line)
		set := map[string]any{}
		for matcher := range strings.SplitSeq(strings.Trim(words[0], "-"), "&") {
			name, values, _ := strings.Cut(matcher, "=")
			positive, negated := strings.CutPrefix(name, "!")
			if value := strings.Split(values, ","); negated {
				set["not"] = []any{map[string]any{positive: value}}
			} else if name != "" {
				set[name] = value
			}
		}
		route := map[string]any{"handle": []any{}}
		if len(set) > 0 {
			route["match"] = []any{set}
		}
		for _, word := range words[1:] {
			name, argument, _ := strings.Cut(word, "@")
			handler := map[string]any{"handler": name}
			switch name {
			case "gate":
				handler = map[string]any{"handler": gateHandler, "source": "Caddyfile:1", "origin_path": argument}
			case "proxy":
				handler = map[string]any{"handler": "reverse_proxy", "upstreams": []any{map[string]any{"dial": argument}}}
			case "rewrite":
				handler["strip_path_prefix"] = argument
			}
			route["handle"] = append(route["handle"].([]any), handler)
		}
		encoded, err := json.Marshal(route)
		if err != nil {
			t.Fatal(err)
		}
		var r Route
		if err := json.Unmarshal(encoded, &r); err != nil {
			t.Fatal(err)
		}
		s.Routes = append(s.Routes, r)
	}
	s.Listen = []string{":443"}
	return s
}

// The attack: a viewer asks for a path that the gate's matcher does not match, and the handler behind the
// gate answers without a token. Other mistakes show viewers nothing.
func TestRoutes(t *testing.T) {
	t.Parallel()
	const (
		none, past         = "", "requests get past the gate to reverse_proxy o:1"
		unreached, nothing = "no request reaches the gate", "nothing is behind the gate"
		noTokens, mayChain = "no request with a token passes the gate", "a request may pass two gates"
		chain, cacheLeads  = "two gates in one chain", "signed_playback_cache comes before the gate" // errors
	)
	for routes, want := range map[string]string{
		// A gate that does not see all requests.
		"path=/videos/* gate\n- proxy@o:1":                                                         past,
		"path=/videos* gate\n- proxy@o:1":                                                          past,
		"path=*.m3u8,*.ts gate\n- proxy@o:1":                                                       past,
		"path=*.m3u8,*.ts gate\npath=*.m3u8,*.ts proxy@o:1\n- proxy@o:1":                           past,
		"path=*.m3u8 gate\npath=*.ts proxy@o:1\npath=*.m3u8 proxy@o:1":                             past,
		"method=GET gate\n- proxy@o:1":                                                             past,
		"header=X-Player gate\n- proxy@o:1":                                                        past,
		"!remote_ip=10.0.0.0/8 gate\n- proxy@o:1":                                                  past,
		"expression=x gate\n- proxy@o:1":                                                           past,
		"path=/a/*&method=GET gate\npath=/a/* proxy@o:1\n- proxy@o:1":                              past,
		"!path=/free/* gate\n- proxy@o:1":                                                          past,
		"!path=/health* gate\npath=/healthz static_response\n- proxy@o:1":                          past,
		"path=/v/* gate@/v/{video}\npath=/v* proxy@o:1":                                            past,
		"path=/v/* gate\n- some_module proxy@o:1":                                                  past,
		"- gate proxy@o:1":                                                                         none,
		"!path=/healthz gate\npath=/healthz static_response\n- proxy@o:1":                          none,
		"!path=/healthz gate\n- proxy@o:1":                                                         none,
		"!path=/free/* gate\npath=/free/* static_response\n- proxy@o:1":                            none,
		"!path=/free/* gate\n!path=/free/* proxy@o:1":                                              none,
		"path=*.m3u8 gate\npath=*.m3u8 proxy@o:1":                                                  none,
		"method=GET,HEAD gate\n!method=GET,HEAD static_response\n- proxy@o:1":                      none,
		"path=/v/* rewrite@/v gate proxy@o:1\n!path=/v/* proxy@o:2":                                none,
		"path=*.m3u8,*.ts gate\npath=*.mpd gate\npath=*.m3u8,*.ts proxy@o:1\npath=*.mpd proxy@o:1": none,
		"- gate\npath=/demo/* proxy@o:1\n- proxy@o:2":                                              none,
		"path=/ey* gate\npath=/ey* proxy@o:1":                                                      none,
		"- proxy@o:1":                                                                              none,
		strings.Repeat("path=*.ts headers\n", 40) + "- gate proxy@o:1":                             none,
		"- gate signed_playback_cache proxy@o:1":                                                   none,
		"path=/a/* signed_playback_cache\npath=/a/* rewrite@/a gate proxy@o:1":                     cacheLeads,
		"- signed_playback_cache gate proxy@o:1":                                                   cacheLeads,

		// A gate whose matcher demands a prefix where the token is expected.
		"path=/v/* gate\npath=/v/* proxy@o:1":           "one block handle_path /v/*",
		"path=/Videos* gate\npath=/Videos* proxy@o:1":   "one block handle_path /videos/*",
		"path=/a/b/c* gate\npath=/a/b/* proxy@o:1":      "one block handle_path /a/b/*",
		"path=/eu/* gate\npath=/eu/* proxy@o:1":         noTokens,
		"path=/v/*,/w/* gate\npath=/v/*,/w/* proxy@o:1": noTokens,

		// A gate too late, two gates, and nothing to serve.
		"- proxy@o:1\n- gate":                                 unreached,
		"- static_response\n- gate proxy@o:1":                 unreached,
		"- gate encode gate proxy@o:1":                        chain,
		"path=*.ts gate\npath=*.ts gate\npath=*.ts proxy@o:1": chain,
		"header=A gate\n- gate proxy@o:1":                     chain,
		"path=*.m3u8 gate\npath=/demo/* gate\n- proxy@o:1":    mayChain,
		"path=/a/* gate\npath=/a/b/* gate\n- proxy@o:1":       mayChain,
		"- gate":        nothing,
		"- gate encode": nothing,
	} {
		report, err := Check(serverOf(t, routes))
		text := fmt.Sprint(report.Warnings, err)
		silent := len(report.Warnings) == 0 && err == nil
		if silent != (want == none) || !strings.Contains(text, want) || (err != nil) != (want == chain || want == cacheLeads) {
			t.Errorf("%s:\n%s, want %q", routes, text, want)
		}
		if !silent && (!strings.Contains(text, ":443") || !strings.Contains(text, "Caddyfile:1")) {
			t.Errorf("%s:\nneither site nor line: %s", routes, text)
		}
	}
}

// A config with named routes that invoke each other, or with null for a handler, is an error of Caddy and
// no endless loop. Too many matchers are a warning.
func TestRoutesWithoutEnd(t *testing.T) {
	t.Parallel()
	for routes, warnings := range map[string]int{`[{"handle": [{"handler": "invoke", "name": "a"}]}]`: 1, `[{"handle": [null, {"handler": "subroute", "routes": null}]}, null]`: 0} {
		var s Server
		config := `{"routes": ` + routes + `, "named_routes": {"a": {"handle": [{"handler": "invoke", "name": "b"}]}, "b": {"handle": [{"handler": "invoke", "name": "a"}]}}}`
		if err := json.Unmarshal([]byte(config), &s); err != nil {
			t.Fatal(err)
		}
		if report, err := Check(s); err != nil || len(report.Warnings) != warnings {
			t.Errorf("%s: %v, error %v", routes, report.Warnings, err)
		}
	}
	many := ""
	for i := range 20 {
		many += fmt.Sprintf("header=%d some_module\n", i)
	}
	if report, err := Check(serverOf(t, many+"- gate proxy@o:1")); err != nil || len(report.Warnings) != 1 || !strings.Contains(report.Warnings[0].Text, "too many matchers") {
		t.Errorf("%v, error %v", report.Warnings, err)
	}
}

// covers and excludes are right for every path, and say enough where both patterns end alike.
func TestPathPatterns(t *testing.T) {
	t.Parallel()
	texts := []string{""}
	for i := 0; len(texts[i]) < 3; i++ {
		for _, c := range []string{"/", "a", "b"} {
			texts = append(texts, texts[i]+c)
		}
	}
	var patterns []string
	for _, text := range texts[:13] {
		patterns = append(patterns, text, "*"+text, text+"*", "*"+text+"*")
	}
	matches := func(pattern, path string) bool { // as Caddy's MatchPath does
		text, start, end, _ := pathPattern(pattern)
		return start && end && strings.Contains(path, text) || start && !end && strings.HasSuffix(path, text) ||
			!start && end && strings.HasPrefix(path, text) || path == text
	}
	for _, p := range patterns {
		for _, q := range patterns {
			covers, excludes := true, true
			for _, path := range texts {
				covers = covers && (!matches(q, path) || matches(p, path))
				excludes = excludes && (!matches(p, path) || !matches(q, path))
			}
			if coversPath(p, q) && !covers || excludesPath(p, q) && !excludes {
				t.Fatalf("%q covers %q: %t, excludes it: %t", p, q, coversPath(p, q), excludesPath(p, q))
			}
		}
	}
	for _, odd := range []string{"/a*b", "/?", "/[a]", "/%61"} {
		if coversPath("/*", odd) || coversPath(odd, "/a") || excludesPath(odd, "/b") {
			t.Errorf("%q is taken for a simple pattern", odd)
		}
	}
}

// The attack of another spelling: the same upstream without the gate.
func TestDialAddress(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, group := range [][]string{
		{"localhost:1", "LocalHost:1", "a.localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "tcp/[::ffff:127.0.0.1]:1", ":1", "0.0.0.0:1", "[::]:1", "tcp4/:1"},
		{"localhost:2"},
		{"O.example:1", "o.example.:1", "TCP/o.example:1"},
		{"[2001:db8:0::1]:1", "[2001:DB8::1]:1"},
		{"127.0.0.2.example:1"},
		{"unix//run/A"},
		{"unix//run/a"},
		{"{env.UPSTREAM}"},
	} {
		for _, dial := range group {
			address := dialAddress(dial)
			if first, found := seen[address]; found && first != group[0] || address != dialAddress(group[0]) {
				t.Errorf("%s is %s, as %s is", dial, address, first)
			}
			seen[address] = group[0]
		}
	}
}

func TestContainsFolder(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		folder, other string
		want          bool
	}{
		{"/srv", "/srv", true},
		{"/srv", "/srv/videos", true},
		{"/srv", "/SRV/videos", true},
		{"/", "/srv/videos", true},
		{".", "videos", true},
		{".", "/srv", false},
		{"/srv/videos", "/srv", false},
		{"/srv/videos", "/srv/videos-public", false},
		{"/srv", "www", false},
	} {
		if got := containsFolder(tc.folder, tc.other); got != tc.want {
			t.Errorf("%s contains %s: %t", tc.folder, tc.other, got)
		}
	}
}

// A console that nobody could open: matchers of the blocks around it, and its own, exclude its files.
func TestKeptFromConsole(t *testing.T) {
	t.Parallel()
	const page, script = "/console/", "/console/console.js"
	for blocks, want := range map[string]string{ // from the outside in
		"-": "", "/con*": "", "- /con*": "", "/console/* -": "", "/client/*": page, "/client/v4/* -": page, "/x/* -": page, "/console/": script,
		"/ops/* rewrite -": "", "/ops/* rewrite /client/*": page, "/con* /client/*": page, "/Console/*": "",
	} {
		routes := []Route{{Handle: []Handler{{Handler: "signed_playback_api", Console: true}}}}
		words := strings.Fields(blocks)
		for i, word := range slices.Backward(words) {
			switch {
			case word == "rewrite":
				routes = append([]Route{{Handle: []Handler{{Handler: "rewrite"}}}}, routes...)
			case word != "-":
				routes[len(routes)-1].Match = []map[string]json.RawMessage{{"path": json.RawMessage(`["` + word + `"]`)}}
			}
			if i > 0 && words[i-1] != "rewrite" {
				routes = []Route{{Handle: []Handler{{Handler: "subroute", Routes: routes}}}}
			}
		}
		if got := KeptFromConsole(Server{Routes: routes}, page, script); got != want {
			t.Errorf("%s: %q, want %q", blocks, got, want)
		}
	}
}
