package replay

import (
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// serveRunning has the routes of a running server decide on a request, and nothing answer it.
func serveRunning(s *caddyhttp.Server, w http.ResponseWriter, r *http.Request) {
	r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, s)
	// An error is that of a matcher, which leads to no gate.
	_ = replayedRoutes(s.Routes).Compile(noHandler).ServeHTTP(w, r)
}

var noHandler = caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })

// replayedRoutes returns provisioned routes with handlers that are replayed.
func replayedRoutes(routes caddyhttp.RouteList) caddyhttp.RouteList {
	replayed := make(caddyhttp.RouteList, len(routes))
	for i, route := range routes {
		replayed[i] = caddyhttp.Route{Group: route.Group, Terminal: route.Terminal, MatcherSets: route.MatcherSets}
		for _, handler := range route.Handlers {
			replayed[i].Handlers = append(replayed[i].Handlers, replayedHandler{handler})
		}
		_ = replayed[i].ProvisionHandlers(caddy.Context{}, nil) // there is no JSON to fail
	}
	return replayed
}

// replayedHandler is a handler of the running config that neither answers nor asks another
// server. It treats the same handlers as pruneRoutes does.
type replayedHandler struct{ caddyhttp.MiddlewareHandler }

func (h replayedHandler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	handlesResponses := false
	switch inner := h.MiddlewareHandler.(type) {
	case *caddyhttp.Subroute:
		return replayedRoutes(inner.Routes).Compile(next).ServeHTTP(w, r)
	case *caddyhttp.Invoke:
		server := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
		if named, ok := server.NamedRoutes[inner.Name]; ok {
			return replayedRoutes(caddyhttp.RouteList{*named}).Compile(next).ServeHTTP(w, r)
		}
	case *reverseproxy.Handler:
		handlesResponses = len(inner.HandleResponse) > 0
	}
	switch name := caddy.GetModuleName(h.MiddlewareHandler); {
	case slices.Contains(replayedHandlers, name):
		return h.MiddlewareHandler.ServeHTTP(w, r, next)
	case answersRequests(name, handlesResponses):
		w.Header().Set(answeredBy, name)
		return nil
	case name != "encode":
		w.Header().Add(notReplayed, name)
	}
	return next.ServeHTTP(w, r)
}
