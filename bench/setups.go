package main

import (
	"bytes"
	"embed"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
)

//go:embed config
var templates embed.FS

// load.lua is read by wrk, so it has to become a file.
//
//go:embed load.lua
var loadScript []byte

// setup is a server as it is measured.
type setup struct {
	name  string // as in -only
	title string
	bare  string // the name of the same server without a gate; "" if it is that
	gate  bool
	open  bool    // there are tokens, and nobody looks at them
	form  *scheme // of tokens; nil: none
	rules string  // in the tokens, with {network} for one of each token's own
	fresh bool    // a new token for each request, and a new process for each round

	proxied bool // viewers have the addresses that X-Forwarded-For names

	header  map[string]string // of each request
	files   map[string]string // by template
	command []string          // with {dir} for the folder of the files
	env     []string
	ready   string // what the server prints once it serves
}

var allSetups = []*setup{
	caddy(setup{name: "caddy", title: "Caddy"}),
	caddy(setup{name: "caddy-gogc", title: "Caddy, GOGC=600", bare: "caddy", env: []string{"GOGC=600"}}),
	caddy(setup{name: "caddy-rewrite", title: "Caddy, token cut off unseen", bare: "caddy", form: ours, open: true}),
	caddy(setup{name: "gate-warm", title: "gate, warm", bare: "caddy", form: ours}),
	caddy(setup{
		name: "gate-rules", title: "gate, warm, country and origins", bare: "caddy", form: ours, rules: usRules,
		header: map[string]string{"Origin": "https://www.example.org"},
	}),
	caddy(setup{name: "gate-cold", title: "gate, cold", bare: "caddy", form: ours, fresh: true}),
	haproxy(setup{name: "haproxy", title: "HAProxy"}),
	haproxy(setup{name: "haproxy-jwt", title: "HAProxy, jwt_verify", bare: "haproxy", form: ours}),
	trafficServer(setup{name: "ats", title: "Traffic Server"}),
	trafficServer(setup{name: "ats-signing", title: "Traffic Server, uri_signing", bare: "ats", form: cdni}),
	nginx(setup{name: "nginx", title: "nginx"}),
	nginx(setup{name: "nginx-njs", title: "nginx, njs", bare: "nginx", form: ours}),
}

// rulesOf are the rules of one of its tokens.
func (s *setup) rulesOf(i int) string {
	return strings.ReplaceAll(s.rules, "{network}", fmt.Sprintf("2001:db8:%04x:%04x::/64", i>>16, i&0xffff))
}

// caches tells the setups that count how their cache fares.
func (s *setup) caches() bool { return s.gate && s.bare == "caddy" }

// originSetup is nginx with files, for it costs the least of what is installed
// here anyway: what it takes of the processors, the servers under test lack.
var originSetup = &setup{
	name: "origin", title: "origin",
	files:   map[string]string{"origin.conf": "nginx.conf"},
	command: []string{"nginx", "-p", "{dir}", "-e", "stderr", "-c", "{dir}/nginx.conf"},
	ready:   "start worker process ",
}

func caddy(s setup) *setup {
	s.gate = s.form != nil && !s.open
	s.files = map[string]string{"Caddyfile": "Caddyfile"}
	s.command = []string{"{caddy}", "run", "--config", "{dir}/Caddyfile", "--adapter", "caddyfile"}
	s.env = append(s.env, "GOMAXPROCS={procs}", "HOME={dir}", "XDG_DATA_HOME={dir}", "XDG_CONFIG_HOME={dir}")
	s.ready = "serving initial configuration"
	return &s
}

func haproxy(s setup) *setup {
	s.gate = s.form != nil
	s.files = map[string]string{"haproxy.cfg": "haproxy.cfg"}
	s.command = []string{"haproxy", "-W", "-db", "-f", "{dir}/haproxy.cfg"}
	s.ready = "Loading success"
	return &s
}

func trafficServer(s setup) *setup {
	s.gate = s.form != nil
	s.files = map[string]string{
		"ats/records.config": "records.config", "ats/remap.config": "remap.config",
		"ats/plugin.config": "plugin.config", "ats/storage.config": "storage.config",
		"ats/runroot.yaml": "runroot.yaml", "ats/ip_allow.yaml": "ip_allow.yaml",
	}
	if s.gate {
		s.files["ats/uri_signing.json"] = "uri_signing.json"
	}
	s.command = []string{"traffic_server", "--run-root={dir}/runroot.yaml"}
	s.ready = "traffic server running"
	return &s
}

func nginx(s setup) *setup {
	s.gate = s.form != nil
	s.files = map[string]string{"nginx.conf": "nginx.conf"}
	if s.gate {
		s.files["gate.js"] = "gate.js"
	}
	s.command = []string{"nginx", "-p", "{dir}", "-e", "stderr", "-c", "{dir}/nginx.conf"}
	s.ready = "start worker process "
	return &s
}

// facts are what templates are filled with.
type facts struct {
	Dir         string
	Port        string
	MetricsPort string
	Origin      string // host:port
	Procs       int
	Gate        bool
	Open        bool
	Rules       bool
	Proxied     bool
	Database    string
	Video       string
	NjsModule   string
	KeyID       string
	Issuer      string
	publicKey
}

// write makes the files of a setup, with free ports in them.
func (b *bench) write(s *setup, dir string) (facts, error) {
	f := facts{
		Dir: dir, Procs: b.options.procs, Gate: s.gate, Open: s.open, Rules: s.rules != "", Proxied: s.proxied, Database: b.options.database,
		Video: video, NjsModule: njsModule, KeyID: keyID, Issuer: issuer, publicKey: b.public,
	}
	if b.origin != nil {
		f.Origin = b.origin.addr()
	}
	var err error
	if f.Port, f.MetricsPort, err = freePorts(); err != nil {
		return f, err
	}
	// Servers that give up root must be able to read it.
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return f, err
	}
	for from, to := range s.files {
		t, err := template.ParseFS(templates, "config/"+from+".tmpl")
		if err != nil {
			return f, err
		}
		var out bytes.Buffer
		if err := t.Option("missingkey=error").Execute(&out, f); err != nil {
			return f, err
		}
		if err := writeFile(filepath.Join(dir, to), out.Bytes()); err != nil {
			return f, err
		}
	}
	if !s.gate {
		return f, nil
	}
	if err := writeFile(filepath.Join(dir, "keys.json"), fmt.Appendf(nil, `{"keys":[%s]}`, b.public.JWK)); err != nil {
		return f, err
	}
	return f, writeFile(filepath.Join(dir, "public.pem"), []byte(b.public.PEM))
}

// fill puts the values into a command or an environment.
func (b *bench) fill(words []string, dir string) []string {
	r := strings.NewReplacer("{dir}", dir, "{caddy}", b.options.caddy, "{procs}", strconv.Itoa(b.options.procs))
	filled := make([]string, 0, len(words))
	for _, word := range words {
		filled = append(filled, r.Replace(word))
	}
	return filled
}

// freePorts finds two ports that nobody listens on. They are below those that
// the system gives to clients, lest a connection takes one before the server.
func freePorts() (first, second string, err error) {
	const lowest, highest, attempts = 12000, 32000, 100
	var found []string
	for range attempts {
		port := strconv.Itoa(lowest + rand.IntN(highest-lowest)) //nolint:gosec // nobody is to guess it
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
		if err != nil {
			continue
		}
		defer l.Close()
		if found = append(found, port); len(found) == 2 {
			return found[0], found[1], nil
		}
	}
	return "", "", fmt.Errorf("no free ports from %d to %d", lowest, highest)
}

func writeFile(path string, data []byte) error {
	return os.WriteFile(path, data, 0o644) //nolint:gosec // for servers that give up root
}
