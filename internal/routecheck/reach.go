package routecheck

import (
	"encoding/json"
	"slices"
	"strings"
)

// KeptFromConsole returns a path of the console that no request for it gets to, because
// the path matchers in front of a handler with a console exclude it; "" if there is none.
// Where a rewrite comes first, any path may get to it.
func KeptFromConsole(s Server, paths ...string) string {
	for _, path := range paths {
		if keptFromConsole(s.Routes, path, true) {
			return path
		}
	}
	return ""
}

// keptFromConsole reports whether a handler with a console is in routes and gets no request
// for a path. reached is false if none gets to the routes.
func keptFromConsole(routes []Route, path string, reached bool) bool {
	for _, route := range routes {
		here := reached && mayMatchPath(route.Match, path)
		for _, h := range route.Handle {
			if h.Handler == "rewrite" {
				here, reached = true, true
			}
			if h.Console && !here || keptFromConsole(h.Routes, path, here) {
				return true
			}
		}
	}
	return false
}

// mayMatchPath reports whether no path matcher keeps a path from a route.
func mayMatchPath(sets []map[string]json.RawMessage, path string) bool {
	return len(sets) == 0 || slices.ContainsFunc(sets, func(set map[string]json.RawMessage) bool {
		var patterns []string
		_ = json.Unmarshal(set["path"], &patterns) // patterns of another type are an error of Caddy's
		return len(patterns) == 0 || slices.ContainsFunc(patterns, func(pattern string) bool { return !excludesPath(strings.ToLower(pattern), path) })
	})
}
