package signedplayback

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// The routes of a server are checked when its first gate is provisioned, so that
// `caddy validate` shows mistakes too: requests that get past a gate, a gate that
// no request reaches, and two gates in one chain. The check follows a request with
// unknown properties through the routes. At each matcher it goes both ways, unless
// the matchers before it have decided.

// configRoute is a route as the JSON config has it.
type configRoute struct {
	Group    string                       `json:"group"`
	Terminal bool                         `json:"terminal"`
	Match    []map[string]json.RawMessage `json:"match"`
	Handle   []*configHandler             `json:"handle"`
}

// configHandler has the fields of handlers that decide where a request goes.
type configHandler struct {
	Handler string        `json:"handler"`
	Routes  []configRoute `json:"routes"` // of subroute
	Name    string        `json:"name"`   // of invoke
	Root    string        `json:"root"`   // of vars

	// Of reverse_proxy.
	Upstreams []struct {
		Dial string `json:"dial"`
	} `json:"upstreams"`
	Dynamic        json.RawMessage `json:"dynamic_upstreams"`
	HandleResponse []struct {
		Match *struct {
			StatusCode []int `json:"status_code"`
		} `json:"match"`
	} `json:"handle_response"`

	PassThrough bool `json:"pass_thru"` // of file_server

	// Of rewrite.
	URI               string          `json:"uri"`
	StripPrefix       string          `json:"strip_path_prefix"`
	StripSuffix       string          `json:"strip_path_suffix"`
	Substrings        json.RawMessage `json:"uri_substring"`
	RegularExpression json.RawMessage `json:"path_regexp"`

	// Of the gate.
	OriginPath string `json:"origin_path"`
	Source     string `json:"source"`
}

// passingHandlers hand requests on. answeringHandlers answer, and not with media.
// mediaHandlers answer with media. Every other handler may do that or hand on.
var (
	passingHandlers = []string{
		"acme_server", "authentication", "copy_response_headers", "encode", "headers", "intercept", "log_append", "map", "push",
		"request_body", "signed_playback_api", "templates", "timeouts", "tracing",
	}
	answeringHandlers = []string{"copy_response", "error", "metrics", "static_response"}
	mediaHandlers     = []string{"file_server", "reverse_proxy"}
)

// checkSites checks the gates of a server. It is an error if no request can pass.
func checkSites(s configServer) (*siteCheck, error) {
	c := &siteCheck{configServer: s, gates: make(map[*configHandler]*gateCheck), media: make(map[string]*mediaHandler)}
	for _, name := range slices.Sorted(maps.Keys(s.NamedRoutes)) {
		c.collect([]configRoute{s.NamedRoutes[name]}, "")
	}
	c.collect(s.Routes, "")
	c.routes(s.Routes, requestState{}, func(requestState) {})
	return c, c.err
}

// configServer is a server as the JSON config has it.
type configServer struct {
	Listen      []string               `json:"listen"`
	Routes      []configRoute          `json:"routes"`
	NamedRoutes map[string]configRoute `json:"named_routes"`
}

// name names a site of the server that has no hosts.
func (s configServer) name() string { return strings.Join(s.Listen, " ") }

// siteWarning is a mistake in a site. The source is the line of the gate, if the
// config comes from a Caddyfile.
type siteWarning struct{ site, source, text string }

func (w siteWarning) String() string {
	return strings.TrimPrefix(strings.Join([]string{w.site, w.source, w.text}, ": "), ": ")
}

// siteCheck follows requests through the routes of a server.
type siteCheck struct {
	configServer
	steps int
	gates map[*configHandler]*gateCheck
	order []*gateCheck // the gates in the order of the config
	media map[string]*mediaHandler
	err   error
}

// gateCheck is what the requests that reach a gate meet.
type gateCheck struct {
	*configHandler
	site     string
	reached  bool
	answered bool   // a handler is behind the gate
	chain    string // how a request gets here that has passed another gate
}

// collect finds the gates in routes.
func (c *siteCheck) collect(routes []configRoute, site string) {
	for _, r := range routes {
		site := cmp.Or(site, r.hosts())
		for _, h := range r.Handle {
			if h.Handler == appID {
				c.gates[h] = &gateCheck{configHandler: h, site: cmp.Or(site, c.name())}
				c.order = append(c.order, c.gates[h])
			}
			c.collect(h.Routes, site)
		}
	}
}

func (r configRoute) hosts() string {
	var all []string
	for _, set := range r.Match {
		var hosts []string
		_ = json.Unmarshal(set["host"], &hosts)
		all = append(all, hosts...)
	}
	return strings.Join(all, " ")
}

// mediaHandler is a handler that may serve media, and the requests that reach it.
type mediaHandler struct {
	name          string
	gated, exempt *requestState // through a gate, and past every gate
}

const maxSiteSteps = 200_000

// requestState is what is known about a request. It is never changed, only copied.
type requestState struct {
	facts  *fact
	groups *fact // that a route has matched
	root   string

	// How often a handler has changed the path, and its end.
	prefixes, suffixes int

	gate      *gateCheck // the gate that the request has passed
	atGate    *fact      // what was known there
	pathKnown bool       // the path is still the one that the gate has made
	guessed   bool       // the path has such a name only if a video has it
}

// fact is whether a request has a property, and the facts before it.
type fact struct {
	property
	value  bool
	before *fact
}

// property is what a matcher looks for.
type property struct {
	matcher, value string
	version        int // of the path
}

func (s requestState) with(p property, value bool) requestState {
	s.facts = &fact{p, value, s.facts}
	return s
}

// all returns the facts in the order in which they were found out.
func (f *fact) all() (facts []*fact) {
	for ; f != nil; f = f.before {
		facts = append(facts, f)
	}
	slices.Reverse(facts)
	return facts
}

type follow func(requestState)

// routes follows a request through a list of routes, as RouteList.Compile of Caddy
// chains them.
func (c *siteCheck) routes(list []configRoute, s requestState, next follow) {
	if len(list) == 0 {
		next(s)
		return
	}
	route, rest := list[0], func(s requestState) { c.routes(list[1:], s, next) }
	if route.changesNothing() {
		rest(s)
		return
	}
	for f := s.groups; f != nil; f = f.before {
		if route.Group != "" && f.matcher == route.Group {
			rest(s)
			return
		}
	}
	c.match(route.Match, s, func(s requestState) {
		if route.Group != "" {
			s.groups = &fact{property: property{matcher: route.Group}, before: s.groups}
		}
		after := rest
		if route.Terminal {
			after = func(requestState) {}
		}
		c.handlers(route.Handle, s, after)
	}, rest)
}

// changesNothing reports whether it does not matter if the route matches.
func (r configRoute) changesNothing() bool {
	return r.Group == "" && !r.Terminal && !slices.ContainsFunc(r.Handle, func(h *configHandler) bool {
		return !slices.Contains(passingHandlers, h.Handler) && (h.Handler != "vars" || h.Root != "")
	})
}

// match follows a request that one of the matcher sets matches, and one that none
// does. Without sets, every request matches.
func (c *siteCheck) match(sets []map[string]json.RawMessage, s requestState, yes, no follow) {
	if len(sets) == 0 {
		yes(s)
		return
	}
	c.matchAny(len(sets), s, yes, no, func(i int, s requestState, yes, no follow) {
		c.matchAll(sets[i], slices.Sorted(maps.Keys(sets[i])), s, yes, no)
	})
}

// matchAny follows a request that has one of n properties, and one that has none.
func (c *siteCheck) matchAny(n int, s requestState, yes, no follow, one func(i int, s requestState, yes, no follow)) {
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

func (c *siteCheck) matchAll(set map[string]json.RawMessage, names []string, s requestState, yes, no follow) {
	if len(names) == 0 {
		yes(s)
		return
	}
	c.matcher(names[0], set[names[0]], s, func(s requestState) { c.matchAll(set, names[1:], s, yes, no) }, no)
}

func (c *siteCheck) matcher(name string, config json.RawMessage, s requestState, yes, no follow) {
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
func (c *siteCheck) branch(p property, s requestState, yes, no follow) {
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
	s.guessed = s.guessed || s.pathKnown && strings.HasPrefix(p.matcher, "path") && !p.ofPathEnd()
	yes(s.with(p, true))
}

// knows reports whether the facts tell if the request has a property.
func (s requestState) knows(p property) (value, known bool) {
	if p.matcher == "path" && strings.Trim(p.value, "*") == "" || p.value == "/*" {
		return true, true
	}
	for f := s.facts; f != nil; f = f.before {
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
		folder, _, _ := strings.Cut(cmp.Or(s.gate.OriginPath, "/"+videoPlaceholder), videoPlaceholder)
		if strings.HasPrefix(strings.ToLower(folder), text) {
			return true, true
		}
	}
	return false, false
}

// pathPattern is a pattern of Caddy's path matcher, which has * at its start, at
// its end, at both, or nowhere. Other patterns are not ok.
func pathPattern(pattern string) (text string, start, end, ok bool) {
	text, start = strings.CutPrefix(pattern, "*")
	text, end = strings.CutSuffix(text, "*")
	return text, start, end, !strings.ContainsAny(text, "*?[%")
}

// coversPath reports whether a pattern surely matches every path that another one
// matches.
func coversPath(pattern, other string) bool {
	text, start, end, ok := pathPattern(pattern)
	otherText, otherStart, otherEnd, otherOK := pathPattern(other)
	switch {
	case pattern == other:
		return true
	case !ok || !otherOK:
		return false
	case start && end:
		return strings.Contains(otherText, text)
	case start:
		return !otherEnd && strings.HasSuffix(otherText, text)
	case end:
		return !otherStart && strings.HasPrefix(otherText, text)
	default:
		return false
	}
}

// excludesPath reports whether surely no path matches both patterns.
func excludesPath(pattern, other string) bool {
	text, start, end, ok := pathPattern(pattern)
	otherText, otherStart, otherEnd, otherOK := pathPattern(other)
	switch {
	case !ok || !otherOK || pattern == other:
		return false
	case !start && !end && !otherStart && !otherEnd:
		return true
	case !start && !end:
		return !coversPath(other, pattern)
	case !otherStart && !otherEnd:
		return !coversPath(pattern, other)
	case !start && !otherStart:
		return !strings.HasPrefix(text, otherText) && !strings.HasPrefix(otherText, text)
	case !end && !otherEnd:
		return !strings.HasSuffix(text, otherText) && !strings.HasSuffix(otherText, text)
	default:
		return false
	}
}

// handlers follows a request through the handlers of a route.
func (c *siteCheck) handlers(list []*configHandler, s requestState, next follow) {
	if len(list) == 0 {
		next(s)
		return
	}
	h, after := list[0], func(s requestState) { c.handlers(list[1:], s, next) }
	switch {
	case h.Handler == appID:
		c.gate(h, s, after)
	case h.Handler == "subroute":
		c.routes(h.Routes, s, after)
	case h.Handler == "invoke":
		c.routes([]configRoute{c.NamedRoutes[h.Name]}, s, after)
	case h.Handler == "rewrite":
		after(s.rewritten(h))
	case h.Handler == "vars":
		s.root = cmp.Or(h.Root, s.root)
		after(s)
	case slices.Contains(passingHandlers, h.Handler):
		after(s)
	case slices.Contains(answeringHandlers, h.Handler):
		s.answer()
	default:
		c.serve(h, s, after)
	}
}

func (s requestState) rewritten(h *configHandler) requestState {
	prefix, suffix := h.StripPrefix != "", h.URI != "" || h.StripSuffix != "" || h.Substrings != nil || h.RegularExpression != nil
	if prefix || suffix {
		s.prefixes++
		s.pathKnown = false
	}
	if suffix {
		s.suffixes++
	}
	return s
}

// answer notes that a handler answers the request.
func (s requestState) answer() {
	if s.gate != nil {
		s.gate.answered = true
	}
}

// gate follows a request through a gate, which changes the first part of its path.
func (c *siteCheck) gate(h *configHandler, s requestState, after follow) {
	g := c.gates[h]
	g.reached = true
	if s.gate == nil {
		s.gate, s.atGate = g, s.facts
		s.prefixes++
		s.pathKnown = true
		after(s)
		return
	}
	s.answer()
	switch {
	case s.facts == s.atGate:
		c.err = cmp.Or(c.err, error(twoGatesError{s.gate, g}))
	case !s.guessed:
		g.chain = cmp.Or(g.chain, fmt.Sprintf("a request may pass two gates, and the second one refuses it, because its path is the origin's and has no token: the first one is %s (%s)",
			s.gate.place(), s.request()))
	}
}

// twoGatesError is the error of a chain in which every request that passes a gate
// comes to another one.
type twoGatesError struct{ first, second *gateCheck }

func (e twoGatesError) Error() string {
	return fmt.Sprintf("two gates in one chain, %s and %s: the second one gets the origin's path, which has no token, and refuses every request; "+
		"remove one, or put each into a handle block of its own", e.first.place(), e.second.place())
}

// place names a gate.
func (g *gateCheck) place() string {
	return "in the site " + g.site + prefixed(" at ", g.Source)
}

// serve notes that a request reaches a handler that may serve media.
func (c *siteCheck) serve(h *configHandler, s requestState, after follow) {
	passes := !slices.Contains(mediaHandlers, h.Handler) || h.PassThrough
	if h.handsSuccessOn() { // forward_auth, which asks another server whether the viewer may pass
		after(s)
		return
	}
	s.answer()
	root := ""
	if h.Handler == "file_server" {
		root = cmp.Or(strings.TrimPrefix(h.Root, "{http.vars.root}"), s.root)
	}
	key := strings.Join([]string{s.site(), h.Handler, root, h.origin()}, "\n")
	m := c.media[key]
	if m == nil {
		m = &mediaHandler{name: strings.TrimSpace(h.Handler + " " + h.origin())}
		c.media[key] = m
	}
	switch {
	case s.gate != nil && !s.guessed:
		m.gated = cmp.Or(m.gated, &s)
	case s.gate == nil && !s.exactPath():
		m.exempt = cmp.Or(m.exempt, &s)
	}
	if passes {
		after(s)
	}
}

// exactPath reports whether a matcher has demanded one path, like /healthz. The
// operator has then exempted that path on purpose.
func (s requestState) exactPath() bool {
	for f := s.facts; f != nil; f = f.before {
		if f.matcher == "path" && f.value && f.version == s.prefixes && !strings.ContainsAny(f.property.value, "*?[%") {
			return true
		}
	}
	return false
}

// handsSuccessOn reports whether a reverse_proxy hands the request on when the
// upstream answers with success.
func (h *configHandler) handsSuccessOn() bool {
	for _, response := range h.HandleResponse {
		if response.Match == nil || slices.ContainsFunc(response.Match.StatusCode, func(status int) bool { return status == 2 || status/100 == 2 }) {
			return true
		}
	}
	return false
}

// origin names the upstreams of a reverse_proxy.
func (h *configHandler) origin() string {
	var addresses []string
	for _, upstream := range h.Upstreams {
		addresses = append(addresses, upstream.Dial)
	}
	return strings.Join(addresses, " ") + string(h.Dynamic)
}

// site names the site of a request by the hosts that its matchers demand.
func (s requestState) site() string {
	var hosts []string
	for _, f := range s.facts.all() {
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
	for _, f := range s.facts.all() {
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

func (c *siteCheck) warnings() (warnings []siteWarning) {
	if c.steps > maxSiteSteps {
		return []siteWarning{{c.name(), "", "the routes have too many matchers to check whether requests get past a gate"}}
	}
	for _, key := range slices.Sorted(maps.Keys(c.media)) {
		if m := c.media[key]; m.gated != nil && m.exempt != nil {
			w := siteWarning{m.gated.gate.site, m.gated.gate.Source, fmt.Sprintf(
				"requests get past the gate to %s without a token (%s); give both the same matcher, or put them into one handle block", m.name, m.exempt.request())}
			if !slices.Contains(warnings, w) { // one for each host
				warnings = append(warnings, w)
			}
		}
	}
	for _, g := range c.order {
		switch {
		case !g.reached:
			warnings = append(warnings, siteWarning{g.site, g.Source, "no request reaches the gate: a handler before it answers them all, or a matcher never matches; " +
				"in a route block, directives run in the order in which they are written"})
		case g.chain != "":
			warnings = append(warnings, siteWarning{g.site, g.Source, g.chain})
		case !g.answered:
			warnings = append(warnings, siteWarning{g.site, g.Source, "nothing is behind the gate, so it answers 502; add reverse_proxy or file_server after it"})
		}
	}
	return warnings
}

func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}

// serverConfig returns a server in the form of the JSON config. The routes of a server
// whose gate is being provisioned are provisioned in part: the others are still JSON.
func serverConfig(server *caddyhttp.Server) configServer {
	config := configServer{server.Listen, configRoutes(server.Routes), make(map[string]configRoute)}
	for name, route := range server.NamedRoutes {
		config.NamedRoutes[name] = configRoutes(caddyhttp.RouteList{*route})[0]
	}
	return config
}

// configRoutes returns routes in the form of the JSON config.
func configRoutes(routes caddyhttp.RouteList) (list []configRoute) {
	for _, r := range routes {
		route := configRoute{Group: r.Group, Terminal: r.Terminal, Match: configMatchers(r.MatcherSets)}
		for _, set := range r.MatcherSetsRaw {
			route.Match = append(route.Match, set)
		}
		for _, raw := range r.HandlersRaw {
			h := new(configHandler)
			_ = json.Unmarshal(raw, h) // other handlers may have fields of these names and other types
			route.Handle = append(route.Handle, h)
		}
		for _, provisioned := range r.Handlers {
			h := new(configHandler)
			raw, _ := json.Marshal(provisioned)
			_ = json.Unmarshal(raw, h)
			h.Handler = caddy.GetModuleName(provisioned)
			if subroute, ok := provisioned.(*caddyhttp.Subroute); ok {
				h.Routes = configRoutes(subroute.Routes)
			}
			route.Handle = append(route.Handle, h)
		}
		list = append(list, route)
	}
	return list
}

// configMatchers returns provisioned matchers in the form of the JSON config.
func configMatchers(sets caddyhttp.MatcherSets) (list []map[string]json.RawMessage) {
	for _, set := range sets {
		matchers := make(map[string]json.RawMessage)
		for _, m := range set {
			var config any = m
			if not, ok := m.(*caddyhttp.MatchNot); ok {
				config = configMatchers(not.MatcherSets)
			}
			matchers[caddy.GetModuleName(m)], _ = json.Marshal(config)
		}
		list = append(list, matchers)
	}
	return list
}
