// Package routecheck finds mistakes in the routes of a server that has gates:
// requests that get past a gate, a gate that no request or no token reaches, and two gates in
// one chain. For links that signed_playback_mint makes, it finds users whom a client can name
// itself.
//
// It follows a request with unknown properties through the routes of the JSON
// config. At each matcher it goes both ways, unless the matchers before it have
// decided. It knows Caddy's config and not Caddy's code, so it can check a config that
// is provisioned in part.
package routecheck

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"
)

// Route is a route as the JSON config has it.
type Route struct {
	Group    string                       `json:"group"`
	Terminal bool                         `json:"terminal"`
	Match    []map[string]json.RawMessage `json:"match"`
	Handle   []Handler                    `json:"handle"`
}

// Errors has the routes that get a request after an error (handle_errors).
type Errors struct {
	Routes []Route `json:"routes"`
}

// Handler has the fields of handlers that decide where a request goes.
type Handler struct {
	Handler string  `json:"handler"`
	Routes  []Route `json:"routes"` // of subroute
	Errors  Errors  `json:"errors"` // of subroute
	Name    string  `json:"name"`   // of invoke
	Root    string  `json:"root"`   // of vars

	// Of reverse_proxy, and HandleResponse of intercept too.
	Upstreams []struct {
		Dial string `json:"dial"`
	} `json:"upstreams"`
	Dynamic        json.RawMessage `json:"dynamic_upstreams"`
	HandleResponse []struct {
		Match *struct {
			StatusCode []int `json:"status_code"`
		} `json:"match"`
		Routes []Route `json:"routes"`
	} `json:"handle_response"`

	PassThrough bool `json:"pass_thru"` // of file_server

	// Of rewrite.
	URI               string          `json:"uri"`
	StripPrefix       string          `json:"strip_path_prefix"`
	StripSuffix       string          `json:"strip_path_suffix"`
	Substrings        json.RawMessage `json:"uri_substring"`
	RegularExpression json.RawMessage `json:"path_regexp"`

	// Of the gate.
	OriginPath        string          `json:"origin_path"`
	Source            string          `json:"source"`
	Player            json.RawMessage `json:"player"`
	TrustOriginIframe bool            `json:"trust_origin_iframe"`

	// Of signed_playback_mint.
	UID string `json:"uid"`
	To  string `json:"to"`

	Request headerOps `json:"request"` // of headers

	Console bool `json:"console"` // of the API
}

// passingHandlers hand requests on. answeringHandlers answer, and not with media.
// mediaHandlers answer with media. Every other handler may do that or hand on.
var (
	passingHandlers = []string{
		"acme_server", "authentication", "copy_response_headers", "encode", headersHandler, "log_append", "map", "push",
		"request_body", "signed_playback_api", "timeouts", "tracing",
	}
	answeringHandlers = []string{"copy_response", "error", "metrics", mintHandler, "static_response"}
	mediaHandlers     = []string{"file_server", "reverse_proxy"}
)

const (
	gateHandler      = "signed_playback"
	cacheHandler     = "signed_playback_cache"
	mintHandler      = "signed_playback_mint"
	headersHandler   = "headers"
	templatesHandler = "templates"
	interceptHandler = "intercept"
	videoPlaceholder = "{video}" // of origin_path
)

// AnswersAlone reports whether a handler answers every request that reaches it, and
// not with media.
func AnswersAlone(handler string) bool { return slices.Contains(answeringHandlers, handler) }

// ServesMedia reports whether a handler is made to answer with media.
func ServesMedia(handler string) bool { return slices.Contains(mediaHandlers, handler) }

// Report has the gates of a server, in the order of the config, and the mistakes.
type Report struct {
	Gates       []Gate
	Links       []Link
	Warnings    []Warning
	ErrorRoutes bool // the server has some (handle_errors)
}

// Check checks the gates of a server. It returns an error if a gate refuses every
// request that another one lets pass.
func Check(s Server) (Report, error) {
	c := &checker{Server: s, gates: make(map[*Handler]*gate), links: make(map[*Handler]*link), media: make(map[mediaKey]*mediaHandler)}
	for _, name := range slices.Sorted(maps.Keys(s.NamedRoutes)) {
		c.collect([]Route{s.NamedRoutes[name]}, "")
	}
	c.collect(s.Routes, "")
	c.collect(s.Errors.Routes, "")
	c.routes(s.Routes, requestState{}, func(requestState) {})
	for _, failed := range append(c.rooted, requestState{}) {
		failed.failed = true
		c.routes(s.Errors.Routes, failed, func(requestState) {})
	}
	if c.err != nil {
		return Report{}, c.err
	}
	report := Report{Warnings: c.warnings(), ErrorRoutes: c.errorRoutes || len(s.Errors.Routes) > 0}
	for _, g := range c.order {
		report.Gates = append(report.Gates, g.Gate)
	}
	c.reportLinks(&report)
	return report, nil
}

// Server is a server as the JSON config has it.
type Server struct {
	Listen      []string         `json:"listen"`
	Routes      []Route          `json:"routes"`
	NamedRoutes map[string]Route `json:"named_routes"`
	Errors      Errors           `json:"errors"`
}

// name names a site of the server that has no hosts.
func (s Server) name() string { return strings.Join(s.Listen, " ") }

// Gate is where a gate is: the hosts of its site, or the addresses of the server, and
// its file and line, if the config comes from a Caddyfile.
type Gate struct{ Site, Source string }

// Warning is a mistake at a gate.
type Warning struct {
	Gate
	Text string
}

// checker follows requests through the routes of a server.
type checker struct {
	Server
	steps     int
	gates     map[*Handler]*gate
	order     []*gate // the gates in the order of the config
	links     map[*Handler]*link
	linkOrder []*link
	media     map[mediaKey]*mediaHandler
	// Requests that have got a root and passed no gate. Error routes keep the root,
	// and get the client's path.
	rooted      []requestState
	errorRoutes bool // of a subroute
	err         error
}

// gate is what the requests that reach a gate meet.
type gate struct {
	Gate
	folder   string // of the origin, up to the video
	hasPage  bool   // at /iframe
	reached  bool
	answered bool   // a handler is behind the gate
	chain    string // how a request gets here that has passed another gate
	executes bool   // templates execute the media
	tokens   bool   // a request gets here whose path may begin with a token
	prefix   string // that matchers demand of the other requests
}

// collect finds the gates in routes.
func (c *checker) collect(routes []Route, site string) {
	for _, r := range routes {
		site := cmp.Or(site, r.hosts())
		for i := range r.Handle {
			h := &r.Handle[i]
			switch h.Handler {
			case gateHandler:
				c.gates[h] = &gate{Gate: Gate{cmp.Or(site, c.name()), h.Source}, folder: h.folder(), hasPage: h.hasPage()}
				c.order = append(c.order, c.gates[h])
			case mintHandler:
				c.links[h] = &link{Link: Link{Site: cmp.Or(site, c.name())}, toPage: cmp.Or(h.To, "iframe") == "iframe"}
				c.linkOrder = append(c.linkOrder, c.links[h])
			}
			c.collect(h.Routes, site)
			c.collect(h.Errors.Routes, site)
			c.errorRoutes = c.errorRoutes || len(h.Errors.Routes) > 0
		}
	}
}

// folder returns the beginning of the paths at which the origin of a gate has videos.
func (h *Handler) folder() string {
	folder, _, _ := strings.Cut(cmp.Or(h.OriginPath, "/"+videoPlaceholder), videoPlaceholder)
	return folder
}

func (r Route) hosts() string {
	var lists []string
	for _, set := range r.Match {
		var hosts []string
		if json.Unmarshal(set["host"], &hosts) == nil {
			lists = append(lists, strings.Join(hosts, " "))
		}
	}
	return strings.Join(lists, " ")
}

// mediaKey is where a handler gets media from.
type mediaKey struct {
	site, handler, target string
	hidden                string // folders of the root that matchers keep requests from, one a line
}

// mediaHandler is a handler that may serve media, and the requests that reach it.
type mediaHandler struct {
	name          string
	gated, exempt *requestState // through a gate, and past every gate
}

const (
	maxSiteSteps = 100_000
	maxInvoked   = 100 // then named routes invoke each other
)

// requestState is what is known about a request. It is never changed, only copied.
type requestState struct {
	facts   []fact   // in the order in which they were found out
	groups  []string // of which a route has matched
	root    string
	settled []string // headers that are not the client's, as patterns
	invoked int      // how often a named route was

	// How often a handler has changed the path, and its end.
	prefixes, suffixes int

	gate      *gate // the gate that the request has passed
	atGate    int   // how many facts were known there
	pathKnown bool  // the path is still the one that the gate has made
	guessed   bool  // the path has such a name only if a video has it
	foreign   bool  // that name is not in the path that the viewer requested

	executed bool // by templates behind the gate
	cached   bool // a media cache may answer, and no gate is before it

	failed bool // the request is in error routes
	fixed  bool // a rewrite has given it a path that does not depend on the client
}

// fact is whether a request has a property.
type fact struct {
	property
	value bool
}

// property is what a matcher looks for.
type property struct {
	matcher, value string
	version        int // of the path
}

func (s requestState) with(p property, value bool) requestState {
	s.facts = append(slices.Clip(s.facts), fact{p, value})
	return s
}

type follow func(requestState)

// routes follows a request through a list of routes, as RouteList.Compile of Caddy
// chains them.
func (c *checker) routes(list []Route, s requestState, next follow) {
	if len(list) == 0 {
		next(s)
		return
	}
	route, rest := list[0], func(s requestState) { c.routes(list[1:], s, next) }
	if route.changesNothing() {
		rest(s)
		return
	}
	if slices.Contains(s.groups, route.Group) {
		rest(s)
		return
	}
	c.match(route.Match, s, func(s requestState) {
		if route.Group != "" {
			s.groups = append(slices.Clip(s.groups), route.Group)
		}
		after := rest
		if route.Terminal {
			after = func(requestState) {}
		}
		c.handlers(route.Handle, s, after)
	}, rest)
}

// changesNothing reports whether it does not matter if the route matches.
func (r Route) changesNothing() bool {
	return r.Group == "" && !r.Terminal && !slices.ContainsFunc(r.Handle, func(h Handler) bool {
		return (!slices.Contains(passingHandlers, h.Handler) || len(h.settling()) > 0) && (h.Handler != "vars" || h.Root != "")
	})
}

// match follows a request that one of the matcher sets matches, and one that none
// does. Without sets, every request matches.
func (c *checker) match(sets []map[string]json.RawMessage, s requestState, yes, no follow) {
	if len(sets) == 0 {
		yes(s)
		return
	}
	c.matchAny(len(sets), s, yes, no, func(i int, s requestState, yes, no follow) {
		c.matchAll(sets[i], slices.Sorted(maps.Keys(sets[i])), s, yes, no)
	})
}

// matchAny follows a request that has one of n properties, and one that has none.
func (c *checker) matchAny(n int, s requestState, yes, no follow, one func(i int, s requestState, yes, no follow)) {
	var from func(i int, s requestState)
	from = func(i int, s requestState) {
		if i == n {
			no(s)
			return
		}
		one(i, s, yes, func(s requestState) { from(i+1, s) })
	}
	from(0, s)
}

func (c *checker) matchAll(set map[string]json.RawMessage, names []string, s requestState, yes, no follow) {
	if len(names) == 0 {
		yes(s)
		return
	}
	c.matcher(names[0], set[names[0]], s, func(s requestState) { c.matchAll(set, names[1:], s, yes, no) }, no)
}

func (c *checker) matcher(name string, config json.RawMessage, s requestState, yes, no follow) {
	var sets []map[string]json.RawMessage
	var values []string
	switch {
	case name == "not" && json.Unmarshal(config, &sets) == nil:
		c.match(sets, s, no, yes)
	case (name == "path" || name == "host" || name == "method") && json.Unmarshal(config, &values) == nil:
		c.matchAny(len(values), s, yes, no, func(i int, s requestState, yes, no follow) {
			c.branch(s.property(name, strings.ToLower(values[i])), s, yes, no)
		})
	default:
		var compact bytes.Buffer
		_ = json.Compact(&compact, config)
		c.branch(s.property(name, compact.String()), s, yes, no)
	}
}

// constantMatchers look at what no handler changes.
var constantMatchers = []string{"client_ip", "host", "local_ip", "method", "protocol", "remote_ip", "tls"}

func (s requestState) property(matcher, value string) property {
	p := property{matcher: matcher, value: value, version: s.prefixes}
	switch {
	case slices.Contains(constantMatchers, matcher):
		p.version = 0
	case p.ofPathEnd():
		p.version = s.suffixes
	}
	return p
}

// ofPathEnd reports whether a property does not depend on how the path begins, which
// a gate changes.
func (p property) ofPathEnd() bool {
	return p.matcher == "path" && strings.HasPrefix(p.value, "*") || p.matcher == "path_regexp" && !strings.Contains(p.value, "^")
}

// branch follows a request that has a property, and one that has it not, unless it is
// known.
func (c *checker) branch(p property, s requestState, yes, no follow) {
	if c.steps++; c.steps > maxSiteSteps {
		return
	}
	if value, known := s.knows(p); known {
		if value {
			yes(s)
		} else {
			no(s)
		}
		return
	}
	no(s.with(p, false))
	if s.pathKnown && strings.HasPrefix(p.matcher, "path") && !p.ofPathEnd() {
		requested := p
		requested.version--
		value, known := s.knows(requested)
		s.guessed, s.foreign = true, s.foreign || known && !value
	}
	yes(s.with(p, true))
}

// knows reports whether the facts tell if the request has a property.
func (s requestState) knows(p property) (value, known bool) {
	if p.matcher == "path" && strings.Trim(p.value, "*") == "" || p.value == "/*" {
		return true, true
	}
	for _, f := range slices.Backward(s.facts) {
		if f.property == p {
			return f.value, true
		}
		if f.matcher != p.matcher || f.version != p.version {
			continue
		}
		switch p.matcher {
		case "path":
			if f.value && coversPath(p.value, f.property.value) {
				return true, true
			}
			if f.value && excludesPath(p.value, f.property.value) || !f.value && coversPath(f.property.value, p.value) {
				return false, true
			}
		case "host", "method": // wildcards of hosts are not compared
			if f.value && !strings.Contains(f.property.value+p.value, "*") {
				return false, true
			}
		}
	}
	if text, start, end, _ := pathPattern(p.value); s.pathKnown && p.matcher == "path" && !start && end {
		if strings.HasPrefix(strings.ToLower(s.gate.folder), text) {
			return true, true
		}
	}
	return false, false
}

// handlers follows a request through the handlers of a route.
func (c *checker) handlers(list []Handler, s requestState, next follow) {
	if c.steps++; c.steps > maxSiteSteps {
		return
	}
	if len(list) == 0 {
		next(s)
		return
	}
	h, after := &list[0], func(s requestState) { c.handlers(list[1:], s, next) }
	switch {
	case h.Handler == gateHandler:
		c.gate(h, s, after)
	case h.Handler == "subroute":
		c.routes(h.Routes, s, after)
		if len(h.Errors.Routes) > 0 {
			s.failed = true
			c.routes(h.Errors.Routes, s, after)
		}
	case h.Handler == "invoke":
		c.invoke(h, s, after)
	case h.Handler == interceptHandler:
		for _, response := range h.HandleResponse {
			if s.gate == nil { // they answer in place of a gate after it
				c.routes(response.Routes, s, func(requestState) {})
			}
		}
		after(s)
	case h.Handler == cacheHandler:
		s.cached = s.cached || s.gate == nil
		after(s)
	case h.Handler == templatesHandler:
		s.executed = s.gate != nil && !s.failed
		after(s)
	case h.Handler == "rewrite":
		after(s.rewritten(h))
	case h.Handler == "vars":
		s.root = cmp.Or(h.Root, s.root)
		c.keepRoot(s)
		after(s)
	case h.Handler == headersHandler:
		after(s.settling(h.settling()...))
	case h.Handler == mintHandler:
		c.link(h, s)
		s.answer()
	case slices.Contains(passingHandlers, h.Handler):
		after(s)
	case slices.Contains(answeringHandlers, h.Handler):
		s.answer()
	default:
		c.serve(h, s, after)
	}
}

// invoke follows a request through a named route.
func (c *checker) invoke(h *Handler, s requestState, after follow) {
	if s.invoked++; s.invoked > maxInvoked {
		c.steps = maxSiteSteps
	}
	c.routes([]Route{c.NamedRoutes[h.Name]}, s, after)
}

// keepRoot notes the root with which a request may get to error routes.
func (c *checker) keepRoot(s requestState) {
	known := slices.ContainsFunc(c.rooted, func(other requestState) bool { return other.root == s.root && other.site() == s.site() })
	if s.gate != nil || s.failed || known {
		return
	}
	kept := requestState{root: s.root}
	for _, f := range s.facts {
		if f.matcher == "host" {
			kept = kept.with(f.property, f.value)
		}
	}
	c.rooted = append(c.rooted, kept)
}

func (s requestState) rewritten(h *Handler) requestState {
	prefix, suffix := h.StripPrefix != "", h.URI != "" || h.StripSuffix != "" || h.Substrings != nil || h.RegularExpression != nil
	if prefix || suffix {
		s.prefixes++
		s.pathKnown = false
	}
	if suffix {
		s.suffixes++
	}
	s.fixed = s.fixed || strings.HasPrefix(h.URI, "/") && !strings.Contains(strings.ReplaceAll(h.URI, "{http.error.status_code}", ""), "{")
	return s
}

// answer notes that a handler answers the request.
func (s requestState) answer() {
	if s.gate != nil {
		s.gate.answered = true
	}
}

// gate follows a request through a gate, which changes the first part of its path.
func (c *checker) gate(h *Handler, s requestState, after follow) {
	g := c.gates[h]
	g.reached = true
	if s.cached && c.err == nil {
		c.err = fmt.Errorf("signed_playback_cache comes before the gate %s, so it would answer requests on which no gate has decided; put it after signed_playback", g.place())
	}
	prefix := s.prefix()
	g.tokens = g.tokens || s.gate != nil || prefix == ""
	g.prefix = cmp.Or(g.prefix, prefix)
	if s.gate == nil {
		s.gate, s.atGate = g, len(s.facts)
		s.prefixes++
		s.pathKnown = true
		after(s)
		return
	}
	s.answer()
	switch {
	case len(s.facts) != s.atGate && !s.foreign:
		g.chain = cmp.Or(g.chain, fmt.Sprintf("a request may pass two gates, and the second one refuses it, because its path is the origin's and has no token: the first one is %s (%s)",
			s.gate.place(), s.request()))
	case len(s.facts) == s.atGate && c.err == nil:
		c.err = fmt.Errorf("two gates in one chain, %s and %s: the second one gets the origin's path, which has no token, and refuses every request; "+
			"remove one, or put each into a handle block of its own", s.gate.place(), g.place())
	}
}

// prefix returns the prefix of the path that a matcher demands and no token begins
// with, or "".
func (s requestState) prefix() string {
	for _, f := range slices.Backward(s.facts) {
		text, start, end, ok := pathPattern(f.property.value)
		if f.matcher != "path" || !f.value || f.version != s.prefixes || start || !end || !ok || !strings.HasPrefix(text, "/") {
			continue
		}
		folder := text[:strings.LastIndexByte(text, '/')]
		first, _, _ := strings.Cut(text[1:], "/")
		switch {
		case folder != "" && strings.Count(first, ".") != 2:
			return folder
		case folder == "" && first != "" && !strings.HasPrefix(first, "e"): // a token begins with the code of {
			return text
		}
	}
	return ""
}

// place names a gate.
func (g *gate) place() string {
	return strings.TrimSuffix("in the site "+g.Site+" at "+g.Source, " at ")
}

// serve notes that a request reaches a handler that may serve media.
func (c *checker) serve(h *Handler, s requestState, after follow) {
	passes := !slices.Contains(mediaHandlers, h.Handler) || h.PassThrough
	if h.handsSuccessOn() { // forward_auth, which asks another server whether the viewer may pass
		after(s.settling(h.settling()...))
		return
	}
	s.answer()
	if s.executed {
		s.gate.executes = true
	}
	for _, target := range h.targets(s) {
		key := mediaKey{site: s.site(), handler: h.Handler, target: target}
		if h.Handler == "file_server" && s.gate == nil {
			key.target, key.hidden = s.folders(target)
		}
		m := c.media[key]
		if m == nil {
			m = &mediaHandler{name: strings.TrimSpace(h.Handler + " " + h.origin())}
			c.media[key] = m
		}
		switch {
		case s.gate != nil && !s.guessed:
			m.gated = cmp.Or(m.gated, &s)
		case s.gate == nil && !s.exactPath() && (!s.failed || !s.fixed):
			m.exempt = cmp.Or(m.exempt, &s)
		}
	}
	if passes {
		if !slices.Contains(mediaHandlers, h.Handler) {
			s = s.settling("*") // another module may name the user
		}
		after(s)
	}
}

// exactPath reports whether a matcher has demanded one path, like /healthz. The
// operator has then exempted that path on purpose.
func (s requestState) exactPath() bool {
	for _, f := range slices.Backward(s.facts) {
		if f.matcher == "path" && f.value && f.version == s.prefixes && !strings.ContainsAny(f.property.value, "*?[%") {
			return true
		}
	}
	return false
}

// handsSuccessOn reports whether a reverse_proxy hands the request on when the
// upstream answers with success.
func (h *Handler) handsSuccessOn() bool {
	for _, response := range h.HandleResponse {
		if response.Match == nil || slices.ContainsFunc(response.Match.StatusCode, func(status int) bool { return status == 2 || status/100 == 2 }) {
			return !slices.ContainsFunc(response.Routes, Route.answers)
		}
	}
	return false
}

// answers reports whether a handler of the route answers requests.
func (r Route) answers() bool {
	return slices.ContainsFunc(r.Handle, func(h Handler) bool {
		return slices.ContainsFunc(h.Routes, Route.answers) ||
			!slices.Contains(passingHandlers, h.Handler) && !slices.Contains([]string{"subroute", "rewrite", "vars", templatesHandler, interceptHandler}, h.Handler)
	})
}

// targets returns where a handler gets media from: the root of a file_server, or each
// upstream, because another handler may have only one of them.
func (h *Handler) targets(s requestState) []string {
	if h.Handler == "file_server" {
		return []string{path.Clean(cmp.Or(strings.TrimPrefix(h.Root, "{http.vars.root}"), s.root))}
	}
	targets := make([]string, 0, len(h.Upstreams)+1)
	for _, upstream := range h.Upstreams {
		targets = append(targets, dialAddress(upstream.Dial))
	}
	if h.Dynamic != nil || len(targets) == 0 {
		targets = append(targets, string(h.Dynamic))
	}
	return targets
}

// folders returns the folder of a root in which a matcher demands that the path is, and
// those in which it is not, one a line.
func (s requestState) folders(root string) (demanded, hidden string) {
	demanded = root
	for _, f := range slices.Backward(s.facts) {
		text, start, end, ok := pathPattern(f.property.value)
		if f.matcher != "path" || f.version != s.prefixes || !ok || start || !strings.HasPrefix(text, "/") {
			continue
		}
		folder := path.Join(root, text[:strings.LastIndexByte(text, '/')])
		switch {
		case f.value && len(folder) > len(demanded):
			demanded = folder
		case !f.value && end:
			hidden += path.Join(root, text) + "\n"
		}
	}
	return demanded, hidden
}

// containsFolder reports whether a folder is another one, or contains it. Some file
// systems ignore case, and matchers do.
func containsFolder(folder, other string) bool {
	folder, other = strings.ToLower(folder), strings.ToLower(other)
	switch folder {
	case ".":
		return !path.IsAbs(other)
	case other:
		return true
	default:
		return strings.HasPrefix(other, strings.TrimSuffix(folder, "/")+"/")
	}
}

// dialAddress returns the address of an upstream in the one spelling in which addresses
// are compared. An empty or unspecified host is this machine, as for net.Dial.
func dialAddress(dial string) string {
	network, address, found := strings.Cut(dial, "/")
	if found && !strings.HasPrefix(strings.ToLower(network), "tcp") { // the path of a socket
		return dial
	}
	if !found {
		address = dial
	}
	host, port, err := net.SplitHostPort(strings.ToLower(address))
	if err != nil {
		return strings.ToLower(address)
	}
	host = strings.TrimSuffix(host, ".")
	ip, err := netip.ParseAddr(host)
	ip = ip.Unmap()
	switch {
	case host == "" || strings.HasSuffix("."+host, ".localhost") || err == nil && (ip.IsLoopback() || ip.IsUnspecified()):
		host = "localhost"
	case err == nil:
		host = ip.String()
	}
	return net.JoinHostPort(host, port)
}

// origin names the upstreams of a reverse_proxy.
func (h *Handler) origin() string {
	addresses := make([]string, 0, len(h.Upstreams))
	for _, upstream := range h.Upstreams {
		addresses = append(addresses, upstream.Dial)
	}
	return strings.Join(addresses, " ") + string(h.Dynamic)
}

// site names the site of a request by the hosts that its matchers demand.
func (s requestState) site() string {
	var hosts []string
	for _, f := range s.facts {
		if f.matcher == "host" && f.value {
			hosts = append(hosts, f.property.value)
		}
	}
	return strings.Join(hosts, " ")
}

// request describes a request by the matchers that it matches and those that it
// does not match.
func (s requestState) request() string {
	parts := []string{}
	for _, f := range s.facts {
		if f.matcher == "host" {
			continue // as the site says
		}
		part := f.matcher
		if f.matcher != "file" { // its config is long
			part += " " + f.property.value
		}
		if !f.value {
			part = "not " + part
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ", ")
}

func (c *checker) warnings() (warnings []Warning) {
	if c.steps > maxSiteSteps {
		return []Warning{{Gate{Site: c.name()}, "the routes have too many matchers to check whether requests get past a gate"}}
	}
	warnings = c.pastGates()
	for _, g := range c.order {
		if g.executes {
			warnings = append(warnings, Warning{g.Gate, "templates behind the gate execute the files of the origin, so an uploader's file can read environment variables, files and the viewer's URL; " +
				"remove templates, or put them into a handle block that serves only your own files"})
		}
		if g.reached && !g.tokens {
			warnings = append(warnings, Warning{g.Gate, fmt.Sprintf("no request with a token passes the gate: matchers demand a path that begins with %s, where the gate expects the token; "+
				"%s, which removes the prefix", g.prefix, g.advice())})
		}
		switch {
		case !g.reached:
			warnings = append(warnings, Warning{g.Gate, "no request reaches the gate: a handler before it answers them all, or a matcher never matches; " +
				"in a route block, directives run in the order in which they are written"})
		case g.chain != "":
			warnings = append(warnings, Warning{g.Gate, g.chain})
		case !g.answered:
			warnings = append(warnings, Warning{g.Gate, "nothing is behind the gate, so it answers 502; add reverse_proxy or file_server after it"})
		}
	}
	return warnings
}

// pastGates warns of media that requests get through a gate and past every gate.
func (c *checker) pastGates() (warnings []Warning) {
	keys := slices.SortedFunc(maps.Keys(c.media), func(a, b mediaKey) int {
		return cmp.Or(cmp.Compare(a.site, b.site), cmp.Compare(a.handler, b.handler), cmp.Compare(a.target, b.target), cmp.Compare(a.hidden, b.hidden))
	})
	for _, key := range keys {
		m := c.media[key]
		for _, other := range keys {
			exempt := c.media[other].exempt
			if m.gated == nil || exempt == nil || !exempt.shares(key, other) {
				continue
			}
			w := Warning{m.gated.gate.Gate, exempt.pastGate(m)}
			if !slices.Contains(warnings, w) { // one for each host
				warnings = append(warnings, w)
			}
			break
		}
	}
	return warnings
}

// shares reports whether a request past every gate gets media that is gated.
func (s *requestState) shares(gated, exempt mediaKey) bool {
	anySite := s.failed && !slices.ContainsFunc(s.facts, func(f fact) bool { return f.matcher == "host" })
	switch {
	case !anySite && gated.site != exempt.site || gated.handler != exempt.handler:
		return false
	case gated.handler == "file_server":
		for folder := range strings.Lines(exempt.hidden) {
			if containsFolder(strings.TrimSpace(folder), gated.target) {
				return false
			}
		}
		return containsFolder(gated.target, exempt.target) || containsFolder(exempt.target, gated.target)
	default:
		return gated.target == exempt.target
	}
}

// pastGate says how the request gets past the gate to a handler.
func (s *requestState) pastGate(m *mediaHandler) string {
	if s.failed {
		return fmt.Sprintf("requests get past the gate to %s without a token, in error routes (handle_errors) after an error before the gate; "+
			"let error routes answer with something else than the gate's media", m.name)
	}
	return fmt.Sprintf("requests get past the gate to %s without a token (%s); %s", m.name, s.request(), m.gated.gate.advice())
}

// advice says how the gate and the handler behind it get the same requests.
func (g *gate) advice() string {
	if g.tokens {
		return "give both the same matcher, or put them into one handle block"
	}
	return fmt.Sprintf("put the gate, without a matcher, and the handler behind it into one block handle_path %s/*", g.prefix)
}
