package routecheck

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Link is where a signed_playback_mint is, which makes links for users.
type Link struct {
	Site  string
	Gated bool // the site has a gate, too
}

// link is what is known about a signed_playback_mint.
type link struct {
	Link
	toPage bool
	forged string // how a client names a user itself, or ""
}

// requestHeader finds the headers of a request that a placeholder reads.
var requestHeader = regexp.MustCompile(`\{http\.request\.header\.([^}:]+)`)

// link notes that a request reaches a signed_playback_mint. No header that names the user may
// be one that the client has sent. A request that has passed a gate has a token already.
func (c *checker) link(h *Handler, s requestState) {
	for _, header := range requestHeader.FindAllStringSubmatch(h.UID, -1) {
		if s.gate == nil && !s.settles(header[1]) && c.links[h].forged == "" {
			c.links[h].forged = fmt.Sprintf("a client can send the header %s itself and get links in the name of any user%s: no handler before signed_playback_mint sets or removes it; "+
				"name it in copy_headers of forward_auth, or remove it with request_header in a route", header[1], strings.TrimSuffix(" ("+s.request()+")", " ()"))
		}
	}
}

// settles reports whether a header is not the client's: a handler has set or removed it, or
// a matcher has demanded the address of a proxy.
func (s requestState) settles(header string) bool {
	return slices.ContainsFunc(s.settled, func(pattern string) bool {
		matches, _ := path.Match(strings.ToLower(pattern), strings.ToLower(header))
		return matches
	}) || slices.ContainsFunc(s.facts, func(f fact) bool { return f.value && (f.matcher == "remote_ip" || f.matcher == "client_ip") })
}

// settling returns the request after a handler has set or removed headers.
func (s requestState) settling(headers ...string) requestState {
	s.settled = append(slices.Clip(s.settled), headers...)
	return s
}

// settling returns the headers of the request that a handler sets or removes for every request:
// headers itself, and forward_auth in the routes of a success.
func (h *Handler) settling() (headers []string) {
	headers = append(slices.Collect(maps.Keys(h.Request.Set)), h.Request.Delete...)
	for _, response := range h.HandleResponse {
		for _, r := range response.Routes {
			for i := range r.Handle {
				if len(r.Match) == 0 {
					headers = append(headers, r.Handle[i].settling()...)
				}
			}
		}
	}
	return headers
}

// reportLinks adds the links of the server and the mistakes about them.
func (c *checker) reportLinks(report *Report) {
	hasPage := func(g *gate) bool { return g.hasPage }
	for _, l := range c.linkOrder {
		l.Gated = slices.ContainsFunc(c.order, func(g *gate) bool { return g.Site == l.Site })
		report.Links = append(report.Links, l.Link)
		if l.forged != "" {
			report.Warnings = append(report.Warnings, Warning{Gate{Site: l.Site}, l.forged})
		}
		if l.toPage && len(c.order) > 0 && !slices.ContainsFunc(c.order, hasPage) {
			report.Warnings = append(report.Warnings, Warning{Gate{Site: l.Site}, "links of signed_playback_mint lead to the player page, which no gate of the server has; " +
				"give the gate the option player, or the link the option `to manifest`"})
		}
	}
}

// hasPage reports whether a gate serves a page at /iframe.
func (h *Handler) hasPage() bool {
	return h.TrustOriginIframe || len(h.Player) > 0 && string(h.Player) != "null"
}

// headerOps has the names of headers that a handler changes.
type headerOps struct {
	Set    map[string]json.RawMessage `json:"set"`
	Delete []string                   `json:"delete"`
}
