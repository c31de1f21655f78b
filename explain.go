package signedplayback

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/spf13/cobra"

	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/routecheck"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
)

func explainCommand() *cobra.Command {
	opts := explainOptions{now: time.Now}
	cmd := &cobra.Command{
		Use:   "explain <url> --config <file> [--ip <address>] [--origin <origin>] [--referer <url>] [--at <time>]",
		Short: "Shows why a request is allowed or refused",
		Long: `
Replays a request against a config and prints each check of the gate with its
outcome and the values that decided it. It starts no server, writes nothing and
sends nothing to the origin. The ports, matchers, rewrites and trusted proxies of
the config apply, and the gate decides with the code that serves viewers. Keys, key
sets, the geo database and the store are read as the server reads them.

It also shows the checks after the one that refuses, as far as possible.
The exit status is 0 for a request that is allowed (also in report-only mode), 1
for one that is refused, and 2 for an error.

	$ caddy signed-playback explain --config /etc/caddy/Caddyfile \
		'https://media.example.com/eyJhbGci…/manifest/video.m3u8' \
		--ip 203.0.113.7 --origin https://www.example.com
	…
	origins   pass    Origin "https://www.example.com"
	rules     refuse  rule 1 of 2: ip.geoip.country [GB] allow: client 203.0.113.7 is in DE, no match
	                  rule 2 of 2: any block: match: block
	…
	refused with 403 rule_blocked, for 203.0.113.7 at 2030-01-31T12:00:00Z
	$ pbpaste | caddy signed-playback explain - --ip 203.0.113.7

Times are RFC 3339, Unix seconds, or durations from now (-5m, 1h).`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			opts.stdin = cmd.InOrStdin()
			if opts.url, err = oneURL(cmd, opts.url, args); err != nil {
				return err
			}
			return explain(opts, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&opts.config, "config", "c", "Caddyfile", "the config `file`: a Caddyfile, or JSON if its name ends in .json")
	flags.StringVar(&opts.url, "url", "", "the `URL` that the viewer requested, or - for standard input; you may leave out --url")
	flags.StringVar(&opts.ip, "ip", "", "the viewer's `address` (default: 127.0.0.1)")
	flags.StringVar(&opts.origin, "origin", "", "the `Origin` header (default: none)")
	flags.StringVar(&opts.referer, "referer", "", "the `Referer` header (default: none)")
	flags.StringArrayVar(&opts.headers, "header", nil, "another header, as `'Name: value'`; may be repeated")
	flags.StringVar(&opts.method, "method", http.MethodGet, "the request's `method`")
	flags.StringVar(&opts.at, "at", "", "the `time` of the request (default: now)")
	flags.BoolVar(&opts.json, "json", false, "print JSON")
	return cmd
}

type explainOptions struct {
	config, url, ip string
	origin, referer string
	headers         []string
	method, at      string
	json            bool
	stdin           io.Reader
	now             func() time.Time
}

// explanation is the output of explain.
type explanation struct {
	Allowed bool             `json:"allowed"`
	Result  refusal.Result   `json:"result"`
	Reason  refusal.Reason   `json:"reason,omitempty"`
	Status  int              `json:"status,omitempty"` // of a refusal
	Video   string           `json:"video,omitempty"`
	TokenID string           `json:"token_id,omitempty"`
	KeyID   string           `json:"key_id,omitempty"`
	Client  string           `json:"client_ip,omitempty"`
	Country string           `json:"country,omitempty"`
	At      time.Time        `json:"at"`
	Checks  []explainedCheck `json:"checks"`
	Notes   []string         `json:"notes,omitempty"`
}

// errRefused sets the exit status of a refusal that has been printed.
var errRefused = errors.New("the request is refused")

// explain prints why the gate of a config allows or refuses a request. It returns
// errRefused for a refusal, and another error if it cannot decide.
func explain(opts explainOptions, out io.Writer) (err error) {
	request, err := opts.request()
	if err != nil {
		return fmt.Errorf("--%w", err)
	}
	at, err := opts.time()
	if err != nil {
		return err
	}
	replayed, err := loadReplay(opts.config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, replayed.app.Cleanup()) }()
	e, err := replayed.explanation(request, at)
	if err != nil {
		return err
	}
	if err := e.print(out, opts.json); err != nil {
		return err
	}
	if !e.Allowed {
		return errRefused
	}
	return nil
}

func (o explainOptions) time() (time.Time, error) {
	if o.at == "" {
		return o.now(), nil
	}
	at, err := parseTime(o.at, o.now())
	if err != nil {
		return time.Time{}, fmt.Errorf("--at %w", err)
	}
	return at, nil
}

// request returns the request of the options as a server would read it. Its errors begin
// with the name of the option.
func (o explainOptions) request() (*http.Request, error) {
	address := o.url
	if address == "-" {
		text, err := io.ReadAll(io.LimitReader(o.stdin, 1<<20))
		if err != nil {
			return nil, fmt.Errorf("url: reading standard input: %w", err)
		}
		address = strings.TrimSpace(string(text))
	}
	// The gate must see the path byte for byte, so it is not parsed here.
	scheme, rest, ok := strings.Cut(address, "://")
	if !ok || scheme != "http" && scheme != "https" {
		return nil, errors.New("url: want the whole URL that the viewer requested, like https://media.example.com/eyJhbGci…/manifest/video.m3u8")
	}
	host, target := rest, "/"
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		host, target = rest[:i], rest[i:]
	}
	target, _, _ = strings.Cut(target, "#") // browsers do not send it
	if strings.HasPrefix(target, "?") {
		target = "/" + target
	}
	u, err := url.ParseRequestURI(target)
	if err != nil || host == "" || strings.ContainsAny(host, "@ ") {
		return nil, errors.New("url: it has no host, or a path that no server accepts")
	}
	ip, err := netip.ParseAddr(cmp.Or(o.ip, "127.0.0.1"))
	if err != nil {
		return nil, fmt.Errorf("ip %q: want an IP address", o.ip)
	}
	r := &http.Request{
		Method: o.method, URL: u, RequestURI: target, Host: host,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header), Body: http.NoBody,
		RemoteAddr: netip.AddrPortFrom(ip, 12345).String(),
	}
	if scheme == "https" {
		name, _, err := net.SplitHostPort(host)
		if err != nil {
			name = host
		}
		r.TLS = &tls.ConnectionState{HandshakeComplete: true, ServerName: name, Version: tls.VersionTLS13}
	}
	return r, o.setHeaders(r.Header)
}

func (o explainOptions) setHeaders(h http.Header) error {
	if _, host, _ := strings.Cut(o.origin, "://"); o.origin != "" && o.origin != "null" && (host == "" || strings.Contains(host, "/")) {
		return fmt.Errorf("origin %q: want an origin as browsers send it, like https://www.example.com", o.origin)
	}
	if o.referer != "" && !strings.Contains(o.referer, "://") {
		return fmt.Errorf("referer %q: want a URL like https://www.example.com/page", o.referer)
	}
	for name, value := range map[string]string{"Origin": o.origin, "Referer": o.referer} {
		if value != "" {
			h.Set(name, value)
		}
	}
	for _, line := range o.headers {
		name, value, ok := strings.Cut(line, ":")
		if name = strings.TrimSpace(name); !ok || name == "" || strings.ContainsAny(name, " \t") {
			return fmt.Errorf("header %q: want 'Name: value'", name)
		}
		h.Add(name, strings.TrimSpace(value))
	}
	return nil
}

// replay is a config in which requests are replayed.
type replay struct {
	app     *App // nil for the running config
	servers map[string]*caddyhttp.Server
	serve   func(*caddyhttp.Server, http.ResponseWriter, *http.Request)
	notes   []string
	https   bool // Caddy may redirect from port 80
}

// loadReplay provisions the parts of a config that decide about requests.
func loadReplay(file string) (*replay, error) {
	config, err := adaptConfig(file)
	if err != nil {
		return nil, err
	}
	var p pruned
	if err := p.prune(config); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	found, err := provision(file, config)
	if err != nil {
		return nil, err
	}
	found.https = p.https
	if found.app.lacksKeys() {
		found.notes = append(found.notes, noKeys)
	}
	if remote := found.app.keys.Remote; remote != nil {
		if err := remote.Load(); err != nil {
			found.notes = append(found.notes, fmt.Sprintf("the key set of jwks_url cannot be loaded now: %v", err))
		}
	}
	return found, nil
}

// provision provisions a config without starting it.
func provision(file string, config map[string]any) (*replay, error) {
	raw, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	var cfg caddy.Config
	if err := caddy.StrictUnmarshalJSON(raw, &cfg); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	ctx, err := caddy.ProvisionContext(&cfg)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	server, err := ctx.App("http")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	app, err := ctx.App(appID)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return &replay{app: app.(*App), servers: server.(*caddyhttp.App).Servers, serve: (*caddyhttp.Server).ServeHTTP}, nil
}

// adaptConfig reads a config file as `caddy run` does.
func adaptConfig(file string) (config map[string]any, err error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--config: %w; name the config of the server, like --config /etc/caddy/Caddyfile", err)
	}
	if filepath.Ext(file) != ".json" {
		if raw, _, err = caddyconfig.GetAdapter("caddyfile").Adapt(raw, map[string]any{"filename": file}); err != nil {
			return nil, fmt.Errorf("--config %q: %w", file, err)
		}
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, fmt.Errorf("--config %q: %w", file, err)
	}
	dropIDs(config)
	return config, nil
}

// dropIDs removes the members that only the admin API reads.
func dropIDs(value any) {
	switch value := value.(type) {
	case map[string]any:
		delete(value, "@id")
		for _, element := range value {
			dropIDs(element)
		}
	case []any:
		for _, element := range value {
			dropIDs(element)
		}
	}
}

// pruned removes from a config everything that listens, writes logs, obtains
// certificates, sends requests or answers them.
type pruned struct {
	https bool // a server has TLS, or the port for it
}

func (p *pruned) prune(config map[string]any) error {
	app, servers, err := httpServers(config)
	if err != nil {
		return err
	}
	for _, s := range servers {
		listen, _ := s["listen"].([]any)
		p.https = p.https || s["tls_connection_policies"] != nil || slices.Contains(listen, any(":443"))
	}
	if err := isolate(config); err != nil {
		return err
	}
	config["logging"] = map[string]any{"logs": map[string]any{"default": map[string]any{"level": "ERROR"}}}
	for _, s := range servers {
		for _, name := range []string{"logs", "errors", "strict_sni_host", "metrics"} {
			delete(s, name)
		}
		p.routes(s["routes"])
		named, _ := s["named_routes"].(map[string]any)
		for _, route := range named {
			p.routes([]any{route})
		}
	}
	delete(app, "metrics")
	return nil
}

// httpServers returns the http app of a config, and its servers.
func httpServers(config map[string]any) (app map[string]any, servers []map[string]any, err error) {
	apps, _ := config["apps"].(map[string]any)
	app, _ = apps["http"].(map[string]any)
	named, _ := app["servers"].(map[string]any)
	for _, value := range named {
		server, ok := value.(map[string]any)
		if !ok {
			return nil, nil, errors.New("a server of the http app is not an object")
		}
		servers = append(servers, server)
	}
	return app, servers, nil
}

// isolate removes from a config everything that listens or obtains certificates.
func isolate(config map[string]any) error {
	app, servers, err := httpServers(config)
	if err != nil {
		return err
	}
	if len(servers) == 0 {
		return errors.New("the config has no site, so no gate")
	}
	kept := map[string]any{"http": app}
	apps, _ := config["apps"].(map[string]any)
	if own, ok := apps[appID]; ok {
		kept[appID] = own
	}
	config["apps"], config["admin"] = kept, map[string]any{"disabled": true}
	for _, s := range servers {
		for _, name := range []string{"listener_wrappers", "packet_conn_wrappers", "tls_connection_policies"} {
			delete(s, name)
		}
		s["automatic_https"] = map[string]any{"disable": true}
	}
	return nil
}

// replayedHandlers are the handlers that only change what the gate sees.
var replayedHandlers = []string{"signed_playback", "signed_playback_cache", "subroute", "rewrite", "vars", "map", "headers", "invoke"}

// The headers of a response that name the handlers which a request has met.
const (
	answeredBy  = "X-Answered-By"
	notReplayed = "X-Not-Replayed"
)

// answersRequests reports whether a handler answers the requests that reach it. One with routes for
// responses only asks another server.
func answersRequests(name string, handlesResponses bool) bool {
	return routecheck.AnswersAlone(name) || routecheck.ServesMedia(name) && !handlesResponses
}

func (p *pruned) routes(routes any) {
	list, _ := routes.([]any)
	for _, route := range list {
		fields, ok := route.(map[string]any)
		if !ok {
			continue
		}
		handlers, _ := fields["handle"].([]any)
		var kept []any
		for _, value := range handlers {
			handler, _ := value.(map[string]any)
			name, _ := handler["handler"].(string)
			switch {
			case slices.Contains(replayedHandlers, name):
				p.routes(handler["routes"])
				kept = append(kept, handler)
			case answersRequests(name, handler["handle_response"] != nil):
				kept = append(kept, map[string]any{
					"handler": "static_response",
					"headers": map[string]any{answeredBy: []any{name}},
				})
			case name != "encode":
				kept = append(kept, map[string]any{
					"handler":  "headers",
					"response": map[string]any{"add": map[string]any{notReplayed: []any{name}}},
				})
			}
		}
		fields["handle"] = kept
	}
}

// explanation replays a request on the server that listens on its port.
func (p *replay) explanation(r *http.Request, at time.Time) (*explanation, error) {
	server, err := p.listening(r)
	if err != nil {
		return nil, err
	}
	found := &trace{at: at}
	w := &unread{header: make(http.Header)}
	p.serve(server, w, r.WithContext(context.WithValue(r.Context(), traceKey{}, found)))
	by := w.header.Get(answeredBy)
	left := slices.Compact(slices.Sorted(slices.Values(w.header[notReplayed])))
	for _, name := range left {
		p.notes = append(p.notes, fmt.Sprintf("the handler %s was not replayed; if it comes before the gate, it may answer or change the request", name))
	}
	switch {
	case found.decision != nil && found.passed && by == "" && len(left) == 0:
		p.notes = append(p.notes, "no handler after the gate answers the request, so the server answers 502")
	case found.decision != nil:
	default:
		return nil, noGateReached(server, r, by)
	}
	e := found.explanation()
	e.Notes = append(e.Notes, p.notes...)
	return e, nil
}

// noGateReached says why a request reaches no gate. A handler may have answered it.
func noGateReached(server *caddyhttp.Server, r *http.Request, by string) error {
	gates, err := gatesOf(server, r)
	if err != nil {
		return err
	}
	places := strings.Join(gates, ", ")
	switch {
	case places == "" && by == "":
		return fmt.Errorf("no gate is reached: no site with signed_playback is for the host %q", r.Host)
	case places == "":
		return fmt.Errorf("no gate is reached: no site with signed_playback is for the host %q, and %s answers", r.Host, by)
	case by == "":
		return fmt.Errorf("no gate is reached: each gate of the site for %q (%s) has a matcher, or one of a block around it, that does not match the request", r.Host, places)
	default:
		return fmt.Errorf("no gate is reached: %s answers %q; each gate of the site (%s) comes after that handler, or has a matcher, or one of a block around it, that does not match the request",
			by, r.Host, places)
	}
}

// gatesOf returns the places of the gates of the sites that are for the host of a
// request.
func gatesOf(server *caddyhttp.Server, r *http.Request) (places []string, err error) {
	config := serverConfig(server)
	report, err := routecheck.Check(config)
	if err != nil {
		return nil, err
	}
	r = r.WithContext(context.WithValue(r.Context(), caddy.ReplacerCtxKey, caddy.NewReplacer()))
	for _, g := range report.Gates {
		hosts := caddyhttp.MatchHost(strings.Fields(g.Site))
		matches := g.Site == strings.Join(config.Listen, " ") // without hosts
		if !matches {
			if err := hosts.Provision(caddy.Context{}); err != nil {
				return nil, err
			}
			if matches, err = hosts.MatchWithError(r); err != nil {
				return nil, err
			}
		}
		if matches {
			places = append(places, cmp.Or(g.Source, g.Site))
		}
	}
	return places, nil
}

// listening returns the server that listens on the port of a request.
func (p *replay) listening(r *http.Request) (*caddyhttp.Server, error) {
	_, text, err := net.SplitHostPort(r.Host)
	if err != nil {
		text = strconv.Itoa(int(weborigin.DefaultPort(r.TLS != nil)))
	}
	port, _ := strconv.ParseUint(text, 10, 16) // nothing listens on an invalid one
	var addresses []string
	for _, server := range p.servers {
		for _, listener := range server.Listen {
			address, err := caddy.ParseNetworkAddress(listener)
			if err == nil && uint64(address.StartPort) <= port && port <= uint64(address.EndPort) {
				return server, nil
			}
			addresses = append(addresses, listener)
		}
	}
	slices.Sort(addresses)
	redirects := ""
	if p.https {
		redirects = " (and perhaps on port 80 to redirect to HTTPS)"
	}
	return nil, fmt.Errorf("no server of the config listens on port %q, but on %s%s; "+
		"if a proxy in front changes the port, give the URL that it requests", text, strings.Join(addresses, ", "), redirects)
}

// unread is a response writer that keeps only the status and the headers.
type unread struct {
	header http.Header
	status int
}

func (w *unread) Header() http.Header    { return w.header }
func (w *unread) WriteHeader(status int) { w.status = status }
func (w *unread) Write(p []byte) (int, error) {
	w.status = cmp.Or(w.status, http.StatusOK)
	return len(p), nil
}

func (t *trace) explanation() *explanation {
	d := t.decision
	e := &explanation{
		Allowed: t.refusal == nil, Result: refusal.Allowed, At: t.at.UTC(), Checks: t.checks,
		Video: d.video, TokenID: redact.TokenID(d.target.Token), Country: d.knownCountry(),
	}
	e.KeyID, _ = d.recordedValue("key_id")
	if addr, ok := clientAddress(d.request); ok {
		e.Client = addr.String()
	}
	err := t.reported
	if err != nil {
		e.Result = refusal.WouldRefuse
	}
	if t.refusal != nil {
		e.Result, err = refusal.Refused, t.refusal
	}
	if why, ok := errors.AsType[*refusal.Error](err); ok {
		e.Reason = why.Reason
	}
	if e.Result == refusal.Refused {
		e.Status = e.Reason.Status()
	}
	if t.assumed {
		e.Notes = append(e.Notes, "the checks after the token were made as though it were valid")
	}
	return e
}

func (e *explanation) print(out io.Writer, asJSON bool) error {
	if asJSON {
		return writeJSON(out, e)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, check := range e.Checks {
		first := ""
		details := check.Details
		if len(details) > 0 {
			first, details = details[0], details[1:]
		}
		name := string(check.Outcome)
		if check.Outcome == verdictReport {
			name = "would refuse"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", check.Check, name, first)
		for _, detail := range details {
			fmt.Fprintf(table, "\t\t%s\n", detail)
		}
	}
	fmt.Fprintf(table, "\n")
	if err := table.Flush(); err != nil {
		return err
	}
	for _, note := range e.Notes {
		fmt.Fprintf(out, "note: %s\n", note)
	}
	_, err := fmt.Fprintln(out, e.summary())
	return err
}

func (e *explanation) summary() string {
	who := fmt.Sprintf("for %s at %s", cmp.Or(e.Client, "an unknown address"), e.At.Format(time.RFC3339))
	switch e.Result {
	case refusal.Refused:
		return fmt.Sprintf("refused with %d %s, %s", e.Status, e.Reason, who)
	case refusal.WouldRefuse:
		return fmt.Sprintf("allowed, because it is only reported: would be refused with %d %s, %s", e.Reason.Status(), e.Reason, who)
	default:
		return fmt.Sprintf("allowed, %s", who)
	}
}
