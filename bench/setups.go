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
	cache bool    // of media: the origin gets no request while the setup is measured
	over  int     // so many of the protocols, the first ones; 0 means 1

	proxied bool // X-Forwarded-For names the client

	header  map[string]string // of each request
	files   map[string]string // by template
	command string            // with {dir} for the folder of the files, and {caddy}
}

// protocol is how clients talk to a server.
type protocol struct {
	title string
	tls   bool // version 1.3 with AES-128-GCM
	h2    bool
}

// protocols begin with the one over which every setup is measured.
var protocols = []protocol{
	{title: "HTTP"}, {title: "HTTPS", tls: true}, {title: "HTTP/2", tls: true, h2: true},
}

// cell is one column of the report.
type cell struct{ protocol, size int } // indices

func (c cell) String() string { return protocols[c.protocol].title + ", " + objectSizes[c.size].title }

// cells are those in which the setup is measured.
func (s *setup) cells(sizes int) (cells []cell) {
	for p := range max(s.over, 1) {
		for size := range sizes {
			cells = append(cells, cell{p, size})
		}
	}
	return cells
}

const (
	njsModule = "/usr/lib/nginx/modules/ngx_http_js_module.so"

	// Names of setups that the report compares.
	warmGate     = "gate-warm"
	cutOffUnseen = "caddy-rewrite"
	cachedGate   = "gate-cache"
	haproxyJWT   = "haproxy-jwt"
	cachedNginx  = "nginx-cache"
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
	haproxy(setup{name: haproxyJWT, title: "HAProxy, jwt_verify", bare: "haproxy", form: ours, over: 3}),
	trafficServer(setup{name: "ats", title: "Traffic Server"}),
	trafficServer(setup{name: "ats-signing", title: "Traffic Server, uri_signing", bare: "ats", form: cdni}),
	nginx(setup{name: "nginx", title: "nginx"}),
	nginx(setup{name: "nginx-njs", title: "nginx, njs", bare: "nginx", form: ours}),

	caddy(setup{name: cachedGate, title: "gate, cache", form: ours, cache: true, over: 3}),
	haproxy(setup{name: "haproxy-cache", title: "HAProxy, jwt_verify, cache", form: ours, cache: true, over: 3}),
	trafficServer(setup{name: "ats-cache", title: "Traffic Server, uri_signing, cache", form: cdni, cache: true, over: 3}),
	nginx(setup{name: "nginx-njs-cache", title: "nginx, njs, cache", form: ours, cache: true, over: 3}),
	nginx(setup{name: cachedNginx, title: "nginx without a gate, cache", cache: true, over: 3}),
	varnish(setup{name: "varnish-cache", title: "Varnish without a gate, cache", cache: true}),
}

// verifies reports whether the setup looks at tokens.
func (s *setup) verifies() bool { return s.form != nil && !s.open }

// isGate reports whether the setup is a gate of this project.
func (s *setup) isGate() bool { return s.verifies() && strings.HasPrefix(s.command, "{caddy}") }

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
		"ssl_multicert.config",
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

// varnish has no TLS, and a thread for each connection.
func varnish(s setup) *setup {
	s.command = "varnishd -F -j none -n {dir}/state -b {origin} -a {address} -s malloc,256M -p thread_pools=2"
	return &s
}

// threads is how many a server has: GOMAXPROCS, nbthread, worker_processes.
const threads = 2

// facts are what templates are filled with.
type facts struct {
	Dir         string
	Port        string
	TLSPort     string
	MetricsPort string
	Origin      string // host:port
	Procs       int
	Gate        bool // the setup verifies tokens
	Cache       bool
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
		Dir: dir, Procs: threads, Gate: s.verifies(), Cache: s.cache, Open: s.open, Rules: s.rules != "", Proxied: s.proxied,
		Video: video, NjsModule: njsModule, KeyID: keyID, Issuer: issuer, publicKey: b.public,
	}
	if b.origin != nil {
		f.Origin = b.origin.address
	}
	var err error
	if f.Database, err = filepath.Abs("../testdata/country.mmdb"); err != nil { // 127.0.0.1 is in the US
		return f, err
	}
	if err := freePorts(&f.Port, &f.TLSPort, &f.MetricsPort); err != nil {
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
	if err := writeFile(filepath.Join(dir, "certificate.pem"), b.certificate); err != nil {
		return f, err
	}
	return f, writeFile(filepath.Join(dir, "public.pem"), []byte(b.public.PEM))
}

// argv is the command of a setup.
func (b *bench) argv(s *setup, f facts) []string {
	argv := strings.Fields(s.command)
	for i, word := range argv {
		argv[i] = strings.NewReplacer("{dir}", f.Dir, "{caddy}", b.options.caddy, "{address}", "127.0.0.1:"+f.Port, "{origin}", f.Origin).Replace(word)
	}
	return argv
}

// freePorts finds ports that nobody listens on. They are below the ports that the
// system gives to outgoing connections, which could take one first.
func freePorts(ports ...*string) error {
	const lowest, highest, attempts = 12000, 32000, 100
	for range attempts {
		port := strconv.Itoa(lowest + rand.IntN(highest-lowest)) //nolint:gosec // not a secret
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
		if err != nil {
			continue
		}
		defer l.Close()
		*ports[0] = port
		if ports = ports[1:]; len(ports) == 0 {
			return nil
		}
	}
	return fmt.Errorf("no free ports from %d to %d", lowest, highest)
}

func writeFile(path string, data []byte) error {
	return os.WriteFile(path, data, 0o644) //nolint:gosec // servers that give up root read it
}
