package replay

import (
	"slices"

	"github.com/signed-playback/caddy-signed-playback/internal/routecheck"
	"github.com/signed-playback/caddy-signed-playback/internal/siteconfig"
)

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

// prune removes from a config everything that listens, writes logs, obtains
// certificates, sends requests or answers them. It reports whether a server has TLS, or the port
// for it.
func prune(config map[string]any) (https bool, err error) {
	app, servers, err := siteconfig.HTTPServers(config)
	if err != nil {
		return false, err
	}
	for _, s := range servers {
		listen, _ := s["listen"].([]any)
		https = https || s["tls_connection_policies"] != nil || slices.Contains(listen, any(":443"))
	}
	if err := siteconfig.Isolate(config); err != nil {
		return false, err
	}
	config["logging"] = map[string]any{"logs": map[string]any{"default": map[string]any{"level": "ERROR"}}}
	for _, s := range servers {
		for _, name := range []string{"logs", "errors", "strict_sni_host", "metrics"} {
			delete(s, name)
		}
		pruneRoutes(s["routes"])
		named, _ := s["named_routes"].(map[string]any)
		for _, route := range named {
			pruneRoutes([]any{route})
		}
	}
	delete(app, "metrics")
	return https, nil
}

func pruneRoutes(routes any) {
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
				pruneRoutes(handler["routes"])
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
