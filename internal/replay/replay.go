// Package replay shows why the gates of a config allow or refuse a request. It replays the request
// through the matchers and handlers of the config, and neither answers nor asks another server.
package replay

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/internal/routecheck"
	"github.com/signed-playback/caddy-signed-playback/internal/siteconfig"
)

// Module is what a replay needs of the module whose gates decide.
type Module struct {
	Gateway func(app any) Gateway
	Trace   Trace
}

// Trace lets the first gate that a request reaches decide about it as of a time, and explain the
// decision instead of serving. found returns the explanation, nil if the request has reached no
// gate, and whether the request goes on to the handlers after the gate.
type Trace func(r *http.Request, at time.Time) (traced *http.Request, found func() (e *Explanation, passed bool))

// Gateway is the module's app in a config that is provisioned.
type Gateway struct {
	MissingKeys   func() string               // why no token plays; "" if there are keys
	CountKeys     func() int                  // that verify tokens
	LoadKeySet    func() error                // loads the set of jwks_url, if there is one
	RevokedKey    func() string               // the id of a key of the config that the control API has revoked; "" for none
	ReadStore     func(context.Context) error // reads an object that need not exist
	LacksSecret   func() bool                 // sessions are on, and there is no secret for them
	Geo           *geo.Databases
	TakeAdmission func() *url.URL // the back end of admission, nil for none; afterwards nobody asks it
	Cleanup       func() error
}

// Config is a config in which requests are replayed.
type Config struct {
	Gateway Gateway // of a config that Load has provisioned

	servers map[string]*caddyhttp.Server
	serve   func(*caddyhttp.Server, http.ResponseWriter, *http.Request)
	trace   Trace
	notes   []string
	https   bool // Caddy may redirect from port 80
}

// Running returns the config of servers that run.
func Running(servers map[string]*caddyhttp.Server, trace Trace, notes ...string) *Config {
	return &Config{servers: servers, serve: serveRunning, trace: trace, notes: notes}
}

// Load provisions the parts of a config file that decide about requests.
func Load(file string, m Module) (*Config, error) {
	config, err := siteconfig.Adapt(file)
	if err != nil {
		return nil, err
	}
	https, err := prune(config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	server, app, err := siteconfig.Provision(file, config)
	if err != nil {
		return nil, err
	}
	c := &Config{Gateway: m.Gateway(app), servers: server.Servers, serve: (*caddyhttp.Server).ServeHTTP, trace: m.Trace, https: https}
	if note := c.Gateway.MissingKeys(); note != "" {
		c.notes = append(c.notes, note)
	}
	if err := c.Gateway.LoadKeySet(); err != nil {
		c.notes = append(c.notes, fmt.Sprintf("the key set of jwks_url cannot be loaded now: %v", err))
	}
	return c, nil
}

// Explain replays a request on the server that listens on its port.
func (c *Config) Explain(r *http.Request, at time.Time) (*Explanation, error) {
	server, err := siteconfig.Listening(c.servers, r, c.https)
	if err != nil {
		return nil, err
	}
	traced, found := c.trace(r, at)
	w := &discarded{make(http.Header)}
	c.serve(server, w, traced)
	by := w.header.Get(answeredBy)
	e, passed := found()
	if e == nil {
		return nil, noGateReached(server, r, by)
	}
	e.Notes = append(e.Notes, c.notes...)
	left := slices.Compact(slices.Sorted(slices.Values(w.header[notReplayed])))
	for _, name := range left {
		e.Notes = append(e.Notes, fmt.Sprintf("the handler %s was not replayed; if it comes before the gate, it may answer or change the request", name))
	}
	if passed && by == "" && len(left) == 0 {
		e.Notes = append(e.Notes, "no handler after the gate answers the request, so the server answers 502")
	}
	return e, nil
}

// discarded is a response of which only the headers count.
type discarded struct{ header http.Header }

func (w *discarded) Header() http.Header         { return w.header }
func (w *discarded) WriteHeader(int)             {}
func (w *discarded) Write(p []byte) (int, error) { return len(p), nil }

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
	config := siteconfig.Server(server)
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
