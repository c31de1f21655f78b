package command

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/spf13/cobra"

	"github.com/signed-playback/caddy-signed-playback/internal/admission"
	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/replay"
	"github.com/signed-playback/caddy-signed-playback/internal/siteconfig"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
	"github.com/signed-playback/caddy-signed-playback/manifest"
)

func doctorCommand(m Module) *cobra.Command {
	var opts doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor --config <file> [--url <url>] [--accept <check>]... [--json]",
		Short: "Finds mistakes and risks of a deployment",
		Long: `
Loads a config as the server does, and checks it together with everything around
it: keys, the store, the geo database, logs, clocks, and whether viewers can get
to the origin without the gate. Run it on the server and as the server's user. It
starts no server and writes nothing.

With --url it also requests a manifest, or the playlist of a player page, as a
viewer does, through the gate and from the origin, and says which of its URIs do
not work. If only some sites may show the video, name a page of one with --referer.

	$ caddy signed-playback doctor --config /etc/caddy/Caddyfile
	…
	keys    ok     verification keys: 2
	store   ok
	geo     ok     geoip_database was built 2030-01-28
	origin  to do  127.0.0.1:8080 answers at 203.0.113.7:8080 too, where no gate is
	               let it listen on the loopback address alone, or have a firewall close the port
	…

The exit status is 0 if there is nothing to do, 1 if there is, and 2 for an error.
If you intend what a check finds, accept it by the name of the check.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.terminal = terminalOf(cmd)
			return opts.doctor(cmd.Context(), m)
		},
	}
	opts.request.Method = http.MethodGet
	flags := cmd.Flags()
	flags.StringVarP(&opts.config, "config", "c", "Caddyfile", "the config `file`: a Caddyfile, or JSON if its name ends in .json")
	flags.StringVar(&opts.request.URL, "url", "", "the `URL` of a manifest or player page that plays, or - for standard input")
	flags.StringVar(&opts.request.Origin, "origin", "", "the `Origin` header with --url (default: none)")
	flags.StringVar(&opts.request.Referer, "referer", "", "the `Referer` header with --url (default: none)")
	flags.StringArrayVar(&opts.accepted, "accept", nil, "the `check` whose findings you accept; may be repeated")
	flags.BoolVar(&opts.json, "json", false, "print JSON")
	return cmd
}

type doctorOptions struct {
	terminal
	config   string
	request  replay.Request // without a URL, there is none
	accepted []string
	json     bool
}

// finding is a line of doctor's output.
type finding struct {
	Check   string `json:"check"`
	Outcome string `json:"outcome"` // one of the constants below
	Text    string `json:"text,omitempty"`
	Fix     string `json:"fix,omitempty"`
}

const (
	foundOK       = "ok"
	foundToDo     = "to do"
	foundAccepted = "accepted"
)

// checkup is one run of doctor.
type checkup struct {
	doctorOptions
	gateway   replay.Gateway
	warnings  string // the file with them
	upstreams []upstream
	backEnd   *url.URL          // of admission, nil without the option
	playback  *http.Request     // nil without --url
	server    *caddyhttp.Server // that listens for it
	findings  []finding
	check     string // the present one
}

// doctorChecks lists the checks in the order of the output.
var doctorChecks = []struct {
	name string
	run  func(*checkup, context.Context)
}{
	// The others write warnings too, which checkWarnings reads.
	{"playback", (*checkup).checkPlayback},
	{"keys", (*checkup).checkKeys},
	{"store", (*checkup).checkStore},
	{"geo", (*checkup).checkGeo},
	{"admission", (*checkup).checkAdmission},
	{"origin", (*checkup).checkOrigins},
	{"clock", (*checkup).checkClock},
	{"config", (*checkup).checkWarnings},
}

// doctor checks a deployment. It returns ErrRefused if there is something to do.
func (opts doctorOptions) doctor(ctx context.Context, m Module) (err error) {
	names := make([]string, 0, len(doctorChecks))
	for _, check := range doctorChecks {
		names = append(names, check.name)
	}
	for _, name := range opts.accepted {
		if !slices.Contains(names, name) {
			return fmt.Errorf("--accept %q: known checks are %s", name, strings.Join(names, ", "))
		}
	}
	c := &checkup{doctorOptions: opts}
	if opts.request.URL != "" {
		if c.playback, err = opts.readRequest(opts.request); err != nil {
			return err
		}
		c.playback = c.playback.WithContext(ctx)
	}
	config, err := siteconfig.Adapt(opts.config)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp("", "signed-playback-doctor-*.log")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(file.Name())) }()
	if err := file.Close(); err != nil {
		return err
	}
	c.warnings = file.Name()
	if err := c.load(config, m); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.gateway.Cleanup()) }()
	for _, check := range doctorChecks {
		c.check = check.name
		check.run(c, ctx)
		c.ok("")
	}
	return c.print()
}

// load provisions a config, and has its warnings written to the file.
func (c *checkup) load(config map[string]any, m Module) error {
	if err := siteconfig.Isolate(config); err != nil {
		return fmt.Errorf("%s: %w", c.config, err)
	}
	c.upstreams = guardedUpstreams(config)
	writeWarnings(config, c.warnings)
	http, app, err := siteconfig.Provision(c.config, config)
	if err != nil {
		return err
	}
	c.gateway = m.Gateway(app)
	if c.playback != nil {
		if c.server, err = siteconfig.Listening(http.Servers, c.playback, false); err != nil {
			return errors.Join(err, c.gateway.Cleanup())
		}
	}
	// The playback of doctor is no session about which a back end wants to know.
	c.backEnd = c.gateway.TakeAdmission()
	return nil
}

// ok reports that the present check has found nothing to do, unless it has.
func (c *checkup) ok(text string) {
	if n := len(c.findings); n == 0 || c.findings[n-1].Check != c.check {
		c.findings = append(c.findings, finding{c.check, foundOK, text, ""})
	}
}

func (c *checkup) toDo(fix, format string, args ...any) {
	outcome := foundToDo
	if slices.Contains(c.accepted, c.check) {
		outcome = foundAccepted
	}
	c.findings = append(c.findings, finding{c.check, outcome, redact.Tokens(fmt.Sprintf(format, args...)), fix})
}

func (c *checkup) print() (err error) {
	if c.json {
		err = writeJSON(c.out, c.findings)
	} else {
		table := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
		for _, f := range c.findings {
			fmt.Fprintf(table, "%s\t%s\t%s\n", f.Check, f.Outcome, f.Text)
			if f.Fix != "" {
				fmt.Fprintf(table, "\t\t%s\n", f.Fix)
			}
		}
		err = table.Flush()
	}
	if err == nil && slices.ContainsFunc(c.findings, func(f finding) bool { return f.Outcome == foundToDo }) {
		return ErrRefused
	}
	return err
}

// guardedUpstreams returns the upstreams of sites with a gate.
func guardedUpstreams(config map[string]any) (upstreams []upstream) {
	_, servers, _ := siteconfig.HTTPServers(config) // Isolate has returned the error
	for _, server := range servers {
		sites, _ := server["routes"].([]any)
		for _, site := range sites {
			if len(handlersIn(site, "signed_playback")) > 0 {
				upstreams = append(upstreams, upstreamsOf(site)...)
			}
		}
	}
	return upstreams
}

// handlersIn returns the handlers of a name in a part of a config.
func handlersIn(config any, name string) (found []map[string]any) {
	switch config := config.(type) {
	case []any:
		for _, element := range config {
			found = append(found, handlersIn(element, name)...)
		}
	case map[string]any:
		if config["handler"] == name {
			found = append(found, config)
		}
		for _, element := range config {
			found = append(found, handlersIn(element, name)...)
		}
	}
	return found
}

// writeWarnings sends the warnings of this module to a file and drops all other lines. The
// logs of the config stay, because one of the warnings is about them.
func writeWarnings(config map[string]any, file string) {
	logging, _ := config["logging"].(map[string]any)
	logs, _ := logging["logs"].(map[string]any)
	written := make(map[string]any)
	for name, value := range logs {
		written["configured-"+name] = value
	}
	if logs["default"] == nil { // Caddy writes everything to the log of this name
		written["configured-default"] = make(map[string]any)
	}
	for _, value := range written {
		if one, ok := value.(map[string]any); ok {
			one["writer"] = map[string]any{"output": "file", "filename": os.DevNull, "roll": false}
		}
	}
	written["default"] = map[string]any{"level": "PANIC"}
	written["warnings"] = map[string]any{
		"level": "WARN", "include": []any{siteconfig.AppID, "http.handlers.signed_playback"},
		"encoder": map[string]any{"format": "signed_playback", "wrap": map[string]any{"format": "json"}},
		"writer":  map[string]any{"output": "file", "filename": file, "roll": false},
	}
	config["logging"] = map[string]any{"logs": written}
}

// checkWarnings reports the warnings that the module has logged while it loaded the config
// and made the other checks. They are sorted, because Caddy loads the sites of a config in any order.
func (c *checkup) checkWarnings(context.Context) {
	lines, err := os.ReadFile(c.warnings)
	if err != nil {
		c.toDo("", "the warnings cannot be read: %v", err)
		return
	}
	before := len(c.findings)
	for line := range bytes.Lines(lines) {
		var fields map[string]any
		if err := json.Unmarshal(line, &fields); err != nil {
			continue
		}
		text, _ := fields["msg"].(string)
		for _, name := range []string{"level", "ts", "logger", "msg", "stacktrace"} {
			delete(fields, name)
		}
		var details []string
		for _, name := range slices.Sorted(maps.Keys(fields)) {
			details = append(details, fmt.Sprintf("%s: %v", name, fields[name]))
		}
		c.toDo(strings.Join(details, ", "), "%s", text)
	}
	slices.SortFunc(c.findings[before:], func(a, b finding) int {
		return cmp.Or(strings.Compare(a.Text, b.Text), strings.Compare(a.Fix, b.Fix))
	})
}

func (c *checkup) checkKeys(context.Context) {
	if err := c.gateway.LoadKeySet(); err != nil {
		c.toDo("until it can be loaded, the last good set is used, and after a restart none", "the key set of jwks_url cannot be loaded: %v", err)
	}
	if missing := c.gateway.MissingKeys(); missing != "" {
		c.toDo("", "%s", missing)
	}
	c.ok(fmt.Sprintf("verification keys: %d", c.gateway.CountKeys()))
}

func (c *checkup) checkStore(ctx context.Context) {
	if err := c.gateway.ReadStore(ctx); err != nil {
		c.toDo("see that it runs, and that this user may read it", "the store cannot be read: %v", err)
	}
}

// staleAfter is when a geo database is old. MaxMind publishes twice a week, others
// every month.
const staleAfter = 60 * 24 * time.Hour

func (c *checkup) checkGeo(context.Context) {
	var built []string
	for fact := range geo.FactCount {
		if !c.gateway.Geo.Has(fact) {
			continue
		}
		at := c.gateway.Geo.BuildTime(fact)
		if age := c.now.Sub(at); age > staleAfter {
			c.toDo("download a new one over the old file; the server loads it without a restart", "%s was built %s, %d days ago", fact.Option(), at.UTC().Format(time.DateOnly), int(age.Hours()/24))
		}
		built = append(built, fmt.Sprintf("%s was built %s", fact.Option(), at.UTC().Format(time.DateOnly)))
	}
	if built == nil {
		built = []string{"no database, so access rules cannot use countries and networks"}
	}
	c.ok(strings.Join(built, ", "))
}

// checkAdmission connects to the back end and asks it nothing.
func (c *checkup) checkAdmission(ctx context.Context) {
	if c.backEnd == nil {
		c.ok("no back end is asked about sessions")
		return
	}
	const fix = "start it, or correct the URL of admission; until it answers, on_error decides about each session that begins"
	secure := c.backEnd.Scheme == "https"
	port := cmp.Or(c.backEnd.Port(), strconv.Itoa(int(weborigin.DefaultPort(secure))))
	if err := connects(ctx, "tcp", net.JoinHostPort(c.backEnd.Hostname(), port), secure, admission.Timeout); err != nil {
		c.toDo(fix, "%s does not answer: %v", c.backEnd.Host, err)
	}
	c.ok(c.backEnd.Host + " answers")
}

// manifestOfPage matches the path of the playlist in the player page.
var manifestOfPage = regexp.MustCompile(`data-manifest="([^"]*)"`)

// checkPlayback requests a manifest as a viewer does. For the player page, it requests the
// playlist that the page plays: the page itself also loads if there is none.
func (c *checkup) checkPlayback(ctx context.Context) {
	if c.playback == nil {
		c.ok("not checked: give --url")
		return
	}
	w, path := c.view(c.playback), c.playback.URL.EscapedPath()
	if page := manifestOfPage.FindSubmatch(w.body.Bytes()); page != nil {
		r := c.playback.Clone(ctx)
		first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
		path = "/" + first + "/" + html.UnescapeString(string(page[1]))
		r.URL.Path, _ = url.PathUnescape(path)
		r.URL.RawPath, r.URL.RawQuery, r.RequestURI = path, "", path
		w = c.view(r)
	}
	why := w.header.Get("Signed-Playback-Reason")
	switch {
	case why == string(refusal.StateUnavailable) && c.gateway.LacksSecret() && c.gateway.ReadStore(ctx) == nil:
		c.toDo("start the server once, which makes the secret; or run doctor as the server's user, so that it reads the same store; or set session_secret",
			"the URL was not checked: the store has no secret of sessions, because no server with this config has started on it")
	case why == string(refusal.ManifestInvalid): // `explain` asks no origin, so it allows the request
		c.toDo("ask the origin for the same path and look at its answer; the server's error log says what is wrong with it", "the gate refuses the origin's answer: %s", why)
	case why == string(refusal.OriginRequired):
		c.toDo("repeat this with --referer and the URL of a page that may show the video, or leave --url out", "the gate refuses the URL without a page: %s", why)
	case why != "":
		c.toDo("`caddy signed-playback explain` shows each check", "the gate refuses the URL: %s", why)
	case w.status != http.StatusOK:
		c.toDo("see whether the origin has this path of the video; the option `manifest` names the playlist of the player page", "%s: the answer has the status %d", path, w.status)
	default:
		c.checkURIs(path, w.body.Bytes())
	}
}

// view returns the answer to a viewer's request.
func (c *checkup) view(r *http.Request) *seen {
	w := &seen{header: make(http.Header)}
	c.server.ServeHTTP(w, r)
	return w
}

// checkURIs counts the URIs of a manifest, as a viewer gets it, that lead out of the
// video's folder.
func (c *checkup) checkURIs(path string, body []byte) {
	format, _ := manifest.Sniff(body)
	inside := 0
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	at := manifest.Location{Path: path, Folder: "/" + first + "/", Refuses: func([]byte) bool { inside++; return false }}
	_, stats, err := manifest.Rewrite(nil, body, format, at, "", 0)
	switch out := stats.Rewritten + stats.Left + stats.Outside - inside; {
	case format != manifest.HLS && format != manifest.DASH || err != nil:
		c.ok("the URL plays; it is no manifest, so no URIs were checked")
	case out > 0:
		c.toDo("viewers load them without the gate, or not at all; if they are files of the video, name their host in manifest_hosts, or have the packager write relative URIs",
			"the URL plays, but %d of the manifest's %d URIs lead out of the video's folder", out, out+inside)
	default:
		c.ok(fmt.Sprintf("the URL plays; all %d URIs of the manifest stay in the video's folder", inside))
	}
}

// seen is a response writer that keeps a response.
type seen struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *seen) Header() http.Header    { return w.header }
func (w *seen) WriteHeader(status int) { w.status = status }
func (w *seen) Write(p []byte) (int, error) {
	w.status = cmp.Or(w.status, http.StatusOK)
	return w.body.Write(p)
}

// upstream is a server that reverse_proxy asks.
type upstream struct {
	network caddy.NetworkAddress
	tls     bool
}

func (u upstream) String() string { return u.network.JoinHostPort(0) }

// upstreamsOf returns the upstreams of a site whose addresses are fixed, without those
// that are only asked for a permission.
func upstreamsOf(site any) (list []upstream) {
	for _, handler := range handlersIn(site, "reverse_proxy") {
		if handler["handle_response"] != nil {
			continue
		}
		transport, _ := handler["transport"].(map[string]any)
		entries, _ := handler["upstreams"].([]any)
		for _, entry := range entries {
			fields, _ := entry.(map[string]any)
			dial, _ := fields["dial"].(string)
			address, err := caddy.ParseNetworkAddress(dial)
			u := upstream{address, transport["tls"] != nil}
			if err == nil && !strings.Contains(dial, "{") && address.PortRangeSize() == 1 && !slices.Contains(list, u) {
				list = append(list, u)
			}
		}
	}
	return list
}

const (
	originTimeout  = 5 * time.Second
	exposedTimeout = 500 * time.Millisecond
)

// checkOrigins checks that each origin answers, and that only this machine can reach it.
func (c *checkup) checkOrigins(ctx context.Context) {
	for _, u := range c.upstreams {
		if err := connects(ctx, u.network.Network, u.String(), false, originTimeout); err != nil {
			c.toDo("start it, or correct the address in reverse_proxy", "%s does not answer: %v", u, err)
			continue
		}
		for _, other := range c.exposedAt(ctx, u) {
			c.toDo("let it listen on the loopback address alone, or have a firewall close the port", "%s answers at %s too, where no gate is", u, other)
		}
	}
	c.ok(fmt.Sprintf("servers that reverse_proxy asks: %d", len(c.upstreams)))
}

// exposedAt returns the addresses at which others can reach an upstream: of this machine,
// if it is here, or its own public ones.
func (c *checkup) exposedAt(ctx context.Context, u upstream) (found []string) {
	if u.network.IsUnixNetwork() {
		return nil
	}
	hosts, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.network.Host)
	if err != nil {
		return nil
	}
	port := fmt.Sprint(u.network.StartPort)
	for _, host := range hosts {
		if host = host.Unmap(); !host.IsLoopback() && !host.IsPrivate() {
			found = append(found, net.JoinHostPort(host.String(), port)+", a public address,")
		}
		if host.IsLoopback() {
			for _, own := range ownAddresses() {
				if address := net.JoinHostPort(own.String(), port); connects(ctx, "tcp", address, false, exposedTimeout) == nil {
					found = append(found, address)
				}
			}
		}
	}
	return found
}

// ownAddresses returns the addresses of this machine that others can reach.
func ownAddresses() (list []netip.Addr) {
	addresses, _ := net.InterfaceAddrs()
	for _, address := range addresses {
		prefix, err := netip.ParsePrefix(address.String())
		if err == nil && prefix.Addr().IsGlobalUnicast() {
			list = append(list, prefix.Addr())
		}
	}
	return list
}

// maxClockDifference is what two clocks may differ: Date has whole seconds.
const maxClockDifference = 3 * time.Second

// checkClock compares the clock of this machine with the clocks of the origins.
func (c *checkup) checkClock(ctx context.Context) {
	var compared []string
	for _, u := range c.upstreams {
		theirs, err := clockOf(ctx, u)
		if err != nil {
			continue
		}
		compared = append(compared, u.String())
		// Not c.now: the checks before may have waited for servers that do not answer.
		if difference := time.Since(theirs); difference.Abs() > maxClockDifference {
			c.toDo("run an NTP client on both; dates of tokens are exact, and a cache counts the age of media",
				"the clock of this machine and that of %s differ by %s", u, difference.Abs().Round(time.Second))
		}
	}
	if len(compared) == 0 {
		compared = []string{"nothing: no origin sends a Date"}
	}
	c.ok("compared with " + strings.Join(compared, ", "))
}

// clockOf returns the time at an upstream, as the Date of an answer has it.
func clockOf(ctx context.Context, u upstream) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, originTimeout)
	defer cancel()
	client := http.Client{
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, u.network.Network, u.String())
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	address := url.URL{Scheme: "http", Host: cmp.Or(u.network.Host, "localhost"), Path: "/"}
	if u.tls {
		address.Scheme = "https"
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, address.String(), nil)
	if err != nil {
		return time.Time{}, err
	}
	response, err := client.Do(request)
	if err != nil {
		return time.Time{}, err
	}
	_ = response.Body.Close()
	return http.ParseTime(response.Header.Get("Date"))
}
