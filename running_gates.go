package signedplayback

import (
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/controlapi"
	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
)

// servers returns the servers of the running config.
func (a *API) servers() (map[string]*caddyhttp.Server, error) {
	app, err := a.ctx.AppIfConfigured("http")
	if err != nil {
		return nil, err
	}
	return app.(*caddyhttp.App).Servers, nil
}

// describeGateway describes the running config for pages and scripts.
func (a *API) describeGateway() (controlapi.Gateway, error) {
	servers, err := a.servers()
	if err != nil {
		return controlapi.Gateway{}, err
	}
	g := controlapi.Gateway{Version: moduleVersion(), Databases: make(map[string]bool)}
	for fact, name := range map[geo.Fact]string{geo.Country: "country", geo.ASN: "asn", geo.Anonymous: "anonymous"} {
		g.Databases[name] = a.app.geo.Has(fact)
	}
	g.Defaults.AccessRules = a.app.AccessRules
	for _, name := range slices.Sorted(maps.Keys(servers)) {
		server := servers[name]
		add := func(gate *Gate, hosts []string) {
			g.Gates = append(g.Gates, controlapi.Gate{
				Playback: baseOf(server, hosts), Hosts: append([]string{}, hosts...), Manifest: gate.manifest, Player: gate.player != nil,
			})
		}
		findGates(server.Routes, nil, add)
		for _, route := range slices.Sorted(maps.Keys(server.NamedRoutes)) {
			findGates(caddyhttp.RouteList{*server.NamedRoutes[route]}, nil, add)
		}
	}
	public, _ := url.Parse(a.app.publicURL)
	for i, gate := range g.Gates {
		if a.app.publicURL != "" && (len(g.Gates) == 1 || len(gate.Hosts) == 0 || slices.Contains(gate.Hosts, public.Hostname())) {
			g.Gates[i].Playback = a.app.publicURL
		}
	}
	return g, nil
}

// findGates finds the gates in provisioned routes, with the hosts of their sites, nil for any.
func findGates(routes caddyhttp.RouteList, hosts []string, found func(*Gate, []string)) {
	for _, route := range routes {
		ofRoute := hosts
		for _, set := range route.MatcherSets {
			for _, matcher := range set {
				if named, ok := matcher.(*caddyhttp.MatchHost); ok && hosts == nil {
					ofRoute = append(ofRoute, *named...)
				}
			}
		}
		for _, handler := range route.Handlers {
			switch handler := handler.(type) {
			case *Gate:
				found(handler, ofRoute)
			case *caddyhttp.Subroute:
				findGates(handler.Routes, ofRoute, found)
			}
		}
	}
}

// baseOf returns what comes before the paths of a site, "" if it has not exactly one host.
func baseOf(server *caddyhttp.Server, hosts []string) string {
	if len(hosts) != 1 || strings.ContainsAny(hosts[0], "*{") || len(server.Listen) == 0 {
		return ""
	}
	address, err := caddy.ParseNetworkAddress(server.Listen[0])
	if err != nil {
		return ""
	}
	scheme, secure := "http://", len(server.TLSConnPolicies) > 0
	if secure {
		scheme = "https://"
	}
	if uint64(address.StartPort) == uint64(weborigin.DefaultPort(secure)) {
		return scheme + hosts[0]
	}
	return scheme + net.JoinHostPort(hosts[0], strconv.FormatUint(uint64(address.StartPort), 10))
}
