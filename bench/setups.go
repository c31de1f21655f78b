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

//go:embed load.lua
var loadScript []byte

// setup is a server as it is measured.
type setup struct {
	name  string // as in -only
	title string
	bare  string  // the name of the same server without a gate; "" for such a server
	form  *scheme // of tokens; nil for URLs without
	open  bool    // URLs contain a token that nobody looks at
	rules string  // in the tokens
	fresh bool    // a new token for each request, and a new process for each measurement

	proxied bool // X-Forwarded-For names the client

	header  map[string]string // of each request
	files   map[string]string // by template
	command string            // with {dir} for the folder of the files, and {caddy}
}

const (
	njsModule = "/usr/lib/nginx/modules/ngx_http_js_module.so"

	// Names of setups that the report compares.
	warmGate     = "gate-warm"
	cutOffUnseen = "caddy-rewrite"
)

var allSetups = []*setup{
	caddy(setup{name: "caddy", title: "Caddy"}),
	caddy(setup{name: cutOffUnseen, title: "Caddy, token cut off unseen", bare: "caddy", form: ours, open: true}),
	caddy(setup{name: warmGate, title: "gate, warm", bare: "caddy", form: ours}),
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

// verifies reports whether the setup looks at tokens.
func (s *setup) verifies() bool { return s.form != nil && !s.open }

// isGate reports whether the setup is a gate of this project.
func (s *setup) isGate() bool { return s.verifies() && s.bare == "caddy" }

// originSetup is nginx with files, the cheapest of these servers: the processor
// time that the origin takes, the servers under test lack.
var originSetup = &setup{
	name: "origin", title: "origin", command: "nginx -p {dir} -e stderr -c {dir}/nginx.conf",
	files: map[string]string{"origin.conf": "nginx.conf"},
}

func caddy(s setup) *setup {
	s.command = "{caddy} run --config {dir}/Caddyfile --adapter caddyfile"
	s.files = map[string]string{"Caddyfile": "Caddyfile"}
	return &s
}

func haproxy(s setup) *setup {
	s.command = "haproxy -W -db -f {dir}/haproxy.cfg"
	s.files = map[string]string{"haproxy.cfg": "haproxy.cfg"}
	return &s
}

func trafficServer(s setup) *setup {
	s.command = "traffic_server --run-root={dir}/runroot.yaml"
	s.files = make(map[string]string)
	for _, name := range []string{
		"records.config", "remap.config", "plugin.config", "storage.config", "runroot.yaml", "ip_allow.yaml", "uri_signing.json",
	} {
		s.files["ats/"+name] = name
	}
	return &s
}

func nginx(s setup) *setup {
	s.command = originSetup.command
	s.files = map[string]string{"nginx.conf": "nginx.conf", "gate.js": "gate.js"}
	return &s
}

// threads is how many a server has: GOMAXPROCS, nbthread, worker_processes.
const threads = 2

// facts are what templates are filled with.
type facts struct {
	Dir         string
	Port        string
	MetricsPort string
	Origin      string // host:port
	Procs       int
	Gate        bool // the setup verifies tokens
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
		Dir: dir, Procs: threads, Gate: s.verifies(), Open: s.open, Rules: s.rules != "", Proxied: s.proxied,
		Video: video, NjsModule: njsModule, KeyID: keyID, Issuer: issuer, publicKey: b.public,
	}
	if b.origin != nil {
		f.Origin = b.origin.address
	}
	var err error
	if f.Database, err = filepath.Abs("../testdata/country.mmdb"); err != nil { // 127.0.0.1 is in the US
		return f, err
	}
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
	if err := writeFile(filepath.Join(dir, "keys.json"), fmt.Appendf(nil, `{"keys":[%s]}`, b.public.JWK)); err != nil {
		return f, err
	}
	return f, writeFile(filepath.Join(dir, "public.pem"), []byte(b.public.PEM))
}

// argv is the command of a setup.
func (b *bench) argv(s *setup, dir string) []string {
	argv := strings.Fields(s.command)
	for i, word := range argv {
		argv[i] = strings.NewReplacer("{dir}", dir, "{caddy}", b.options.caddy).Replace(word)
	}
	return argv
}

// freePorts finds two ports that nobody listens on. They are below the ports
// that the system gives to outgoing connections, which could take one first.
func freePorts() (first, second string, err error) {
	const lowest, highest, attempts = 12000, 32000, 100
	var found []string
	for range attempts {
		port := strconv.Itoa(lowest + rand.IntN(highest-lowest)) //nolint:gosec // not a secret
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
	return os.WriteFile(path, data, 0o644) //nolint:gosec // servers that give up root read it
}
