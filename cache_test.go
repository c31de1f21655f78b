package signedplayback

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/mediacache"
)

// newCache returns a media cache for requests that come through a gate.
func newCache(t testing.TB, g *Gate, c *Cache) *Cache {
	t.Helper()
	if err := c.compile(); err != nil {
		t.Fatal(err)
	}
	c.cache, c.metrics, c.server = mediacache.New(c.config.Memory), g.app.metrics, new(caddyhttp.Server)
	g.app.caches = append(g.app.caches, c)
	return c
}

// through returns an origin with the cache before it.
func (c *Cache) through(origin func(http.ResponseWriter, *http.Request) error) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		return c.ServeHTTP(w, r, caddyhttp.HandlerFunc(origin))
	}
}

// copyOf returns a request that the gate may change.
func copyOf(r *http.Request) *http.Request {
	out := caddyhttp.PrepareRequest(r.Clone(r.Context()), caddy.NewReplacer(), httptest.NewRecorder(), nil)
	vars := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	maps.Copy(out.Context().Value(caddyhttp.VarsCtxKey).(map[string]any), vars)
	return out
}
