package mediacache

import (
	"context"
	"crypto/tls"
	"net/http"
	"strconv"
)

// userAgent is what the origin sees instead of the viewers' user agents.
const userAgent = "signed-playback"

// GenerationHeader tells a cache in the tier after this one the generation of the object, if
// it is not 0. A request with something else than a number goes past that cache. It does not
// name the group, so a stranger who invents it misses objects and drops none.
const GenerationHeader = "Signed-Playback-Purged"

// generationOf returns the generation that a cache in the tier before wants.
func generationOf(r *http.Request) (generation int64, ok bool) {
	header := r.Header[GenerationHeader]
	if len(header) == 0 {
		return 0, true
	}
	n, err := strconv.ParseUint(header[0], 10, 63)
	return int64(n), err == nil && len(header) == 1
}

// originRequest returns the request that a fill sends to the origin. It says nothing
// about the viewer who happens to be the first.
func originRequest(ctx context.Context, r *http.Request, k key, old *object) *http.Request {
	out := r.Clone(ctx)
	out.Method = http.MethodGet
	out.Body, out.ContentLength, out.TransferEncoding, out.Trailer = http.NoBody, 0, nil, nil
	out.RemoteAddr = ""
	out.Host = k.host
	out.URL = k.url()
	out.RequestURI = out.URL.RequestURI()
	out.Proto, out.ProtoMajor, out.ProtoMinor = "HTTP/1.1", 1, 1
	if k.overTLS {
		out.TLS = &tls.ConnectionState{HandshakeComplete: true} // with no certificate of the viewer
	}
	out.Header = http.Header{
		"User-Agent":      {userAgent},
		"Accept-Encoding": {"identity"},
	}
	if k.Generation > 0 {
		out.Header[GenerationHeader] = []string{strconv.FormatInt(k.Generation, 10)}
	}
	switch {
	case k.slice > 0:
		part := sliceOf(k.slice-1, old.length)
		out.Header.Set("Range", rangeOf(part))
		if old.etag != "" && !isWeak(old.etag) {
			out.Header.Set("If-Range", old.etag)
		} else {
			out.Header.Set("If-Range", old.fields.get("Last-Modified"))
		}
	case old != nil && old.etag != "":
		out.Header.Set("If-None-Match", old.etag)
	case old != nil && !old.modified.IsZero():
		out.Header.Set("If-Modified-Since", old.fields.get("Last-Modified"))
	}
	return out
}
