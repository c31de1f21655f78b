package headerpolicy

import (
	"maps"
	"net/http"
	"time"
)

// Own are the headers of one response that are not the origin's. It has room for the usual
// number, so that all cost one allocation.
type Own struct {
	earlier []header // that Caddy and earlier handlers have set, and an origin may not
	values  []string // that the gate sets

	room struct {
		earlier [2]header
		values  [5]string
	}
}

type header struct {
	name   string
	values []string
}

// NewOwn returns an Own without headers.
func NewOwn() *Own {
	o := new(Own)
	o.earlier, o.values = o.room.earlier[:0], o.room.values[:0]
	return o
}

// Set replaces the values of a header by one.
func (o *Own) Set(h http.Header, name, value string) {
	o.values = append(o.values, value)
	n := len(o.values)
	h[name] = o.values[n-1 : n : n]
}

// SetPrivateCaching keeps shared caches from serving the response to another viewer, and every
// cache from treating it as fresh after its lifetime. Otherwise the origin's directives stay.
// Without any, caches revalidate each time, because a heuristic lifetime could be too long.
func (o *Own) SetPrivateCaching(h http.Header, lifetime time.Duration) {
	o.Set(h, "Cache-Control", privateCacheControl(h["Cache-Control"], lifetime))
	DropSharedCaching(h)
}

// Remember notes the headers of Caddy and earlier handlers that an origin may not replace. Only
// the gate sets CORS headers.
func (o *Own) Remember(h http.Header, passing Response) {
	for name, values := range h {
		if !passing.Passes(name) && !IsCORS(name) {
			o.earlier = append(o.earlier, header{name, values})
		}
	}
}

// Restore drops the origin's headers that may not pass, and restores those that Remember has noted.
func (o *Own) Restore(h http.Header, passing Response) {
	for name := range h {
		if !passing.Passes(name) {
			delete(h, name)
		}
	}
	for _, e := range o.earlier {
		h[e.name] = e.values
	}
}

// With returns the headers that pass, and one more.
func (r Response) With(name string) Response {
	more := maps.Clone(r)
	more[name] = true
	return more
}
