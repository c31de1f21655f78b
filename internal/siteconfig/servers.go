package siteconfig

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/intercept"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/signed-playback/caddy-signed-playback/internal/routecheck"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
)

// Server returns a server in the form of the JSON config. The routes of a server
// whose gate is being provisioned are provisioned in part: the others are still JSON.
func Server(server *caddyhttp.Server) routecheck.Server {
	config := routecheck.Server{Listen: server.Listen, Routes: configRoutes(server.Routes), NamedRoutes: make(map[string]routecheck.Route)}
	for name, route := range server.NamedRoutes {
		if route != nil {
			config.NamedRoutes[name] = configRoutes(caddyhttp.RouteList{*route})[0]
		}
	}
	config.Errors = configErrors(server.Errors)
	return config
}

// configRoutes returns routes in the form of the JSON config.
func configRoutes(routes caddyhttp.RouteList) (list []routecheck.Route) {
	for _, r := range routes {
		route := routecheck.Route{Group: r.Group, Terminal: r.Terminal, Match: configMatchers(r.MatcherSets)}
		for _, set := range r.MatcherSetsRaw {
			route.Match = append(route.Match, set)
		}
		for _, raw := range r.HandlersRaw {
			route.Handle = append(route.Handle, decodeHandler(raw))
		}
		for _, provisioned := range r.Handlers {
			raw, _ := json.Marshal(provisioned)
			h := decodeHandler(raw)
			h.Handler = caddy.GetModuleName(provisioned)
			switch provisioned := provisioned.(type) {
			case *caddyhttp.Subroute:
				h.Routes, h.Errors = configRoutes(provisioned.Routes), configErrors(provisioned.Errors)
			case *intercept.Intercept:
				setResponseRoutes(h, provisioned.HandleResponse)
			case *reverseproxy.Handler:
				setResponseRoutes(h, provisioned.HandleResponse)
			}
			route.Handle = append(route.Handle, h)
		}
		list = append(list, route)
	}
	return list
}

// setResponseRoutes sets the routes in which a provisioned handler handles responses.
func setResponseRoutes(h routecheck.Handler, responses []caddyhttp.ResponseHandler) {
	for i := range h.HandleResponse {
		h.HandleResponse[i].Routes = configRoutes(responses[i].Routes)
	}
}

func configErrors(errors *caddyhttp.HTTPErrorConfig) (config routecheck.Errors) {
	if errors != nil {
		config.Routes = configRoutes(errors.Routes)
	}
	return config
}

func decodeHandler(raw json.RawMessage) (h routecheck.Handler) {
	_ = json.Unmarshal(raw, &h) // other handlers may have fields of these names and other types
	return h
}

// configMatchers returns provisioned matchers in the form of the JSON config.
func configMatchers(sets caddyhttp.MatcherSets) (list []map[string]json.RawMessage) {
	for _, set := range sets {
		matchers := make(map[string]json.RawMessage)
		for _, m := range set {
			raw, _ := json.Marshal(m)
			if not, ok := m.(*caddyhttp.MatchNot); ok {
				raw, _ = json.Marshal(configMatchers(not.MatcherSets))
			}
			matchers[caddy.GetModuleName(m)] = raw
		}
		list = append(list, matchers)
	}
	return list
}

// Handlers calls a function for each handler of provisioned routes, with the hosts of its site,
// nil for any.
func Handlers(routes caddyhttp.RouteList, hosts []string, found func(handler caddyhttp.MiddlewareHandler, hosts []string)) {
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
			if subroute, ok := handler.(*caddyhttp.Subroute); ok {
				Handlers(subroute.Routes, ofRoute, found)
				continue
			}
			found(handler, ofRoute)
		}
	}
}

// BaseURL returns what comes before the paths of a site, "" if it has not exactly one host.
func BaseURL(server *caddyhttp.Server, hosts []string) string {
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

// Listening returns the server that listens on the port of a request. https says that Caddy may
// redirect from port 80 too.
func Listening(servers map[string]*caddyhttp.Server, r *http.Request, https bool) (*caddyhttp.Server, error) {
	_, text, err := net.SplitHostPort(r.Host)
	if err != nil {
		text = strconv.Itoa(int(weborigin.DefaultPort(r.TLS != nil)))
	}
	port, _ := strconv.ParseUint(text, 10, 16) // nothing listens on an invalid one
	var addresses []string
	for _, server := range servers {
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
	if https {
		redirects = " (and perhaps on port 80 to redirect to HTTPS)"
	}
	return nil, fmt.Errorf("no server of the config listens on port %q, but on %s%s; "+
		"if a proxy in front changes the port, give the URL that it requests", text, strings.Join(addresses, ", "), redirects)
}
