package signedplayback

import (
	"context"
	"net/http"
	"strings"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
)

// originRequest turns the viewer's request into the one that the origin gets.
// Call done when the origin has answered.
func (g *Gate) originRequest(r *http.Request, d *decision) (forOrigin *http.Request, done func()) {
	g.setOriginPath(r, d)
	hideOriginalURL(r)
	d.pastCache = g.requestHeaders.Clean(r.Header, d.target)
	if len(g.app.caches) > 0 {
		d.findPurge()
		r = r.WithContext(context.WithValue(r.Context(), decisionKey{}, d))
	}
	limitRanges(r.Header)
	limitCoding(r.Header)
	if d.Manifest {
		return prepareManifestRequest(r)
	}
	if r.Method == http.MethodHead {
		dropRange(r.Header) // RFC 9110 section 14.2
	}
	if d.Kind == playbackpath.KindOther || len(r.Header["Range"]) > 0 {
		// It may turn out to be a manifest, or a part of one.
		r.Header["Accept-Encoding"] = identityCoding
	}
	return r, func() {}
}

// setOriginPath gives the request the path that the video has at the origin.
func (g *Gate) setOriginPath(r *http.Request, d *decision) {
	path, decoded := g.originPath.File(d.video, d.target.Suffix)
	d.originPath = path
	r.URL.User = nil
	r.URL.Path, r.URL.RawPath = decoded, path
	r.URL.RawQuery = headerpolicy.CleanQuery(d.query, d.target)
	r.RequestURI = path
	if r.URL.RawQuery != "" || r.URL.ForceQuery {
		r.RequestURI = path + "?" + r.URL.RawQuery
	}
}

// maxRanges is how many byte ranges one request may ask for. Players ask for
// one.
const maxRanges = 8

// limitRanges drops a Range header that asks for many ranges, which would let a
// short request make the origin send a file many times over. The answer is then
// the whole file (RFC 9110 section 14.2).
func limitRanges(h http.Header) {
	ranges := h["Range"]
	if len(ranges) > 1 || len(ranges) == 1 && strings.Count(ranges[0], ",") >= maxRanges {
		dropRange(h)
	}
}

func dropRange(h http.Header) {
	delete(h, "Range")
	delete(h, "If-Range")
}

// prepareManifestRequest asks the origin for the whole manifest, uncompressed and
// without conditions. The gate could not rewrite a part, and an unchanged manifest
// may have been rewritten for another token. A HEAD becomes a GET, because only
// the rewritten manifest tells its length.
func prepareManifestRequest(r *http.Request) (*http.Request, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(r.Context(), manifestTimeout)
	r = r.WithContext(ctx)
	r.Method = http.MethodGet
	for _, name := range []string{"If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"} {
		delete(r.Header, name)
	}
	askForWhole(r.Header)
	return r, cancel
}

// askForWhole asks the origin for the whole resource, uncompressed.
func askForWhole(h http.Header) {
	dropRange(h)
	h["Accept-Encoding"] = identityCoding
}

var identityCoding, gzipCoding = []string{"identity"}, []string{"gzip"}

// limitCoding lets the origin compress by gzip only. In any other coding, the gate
// could not tell a manifest by its first bytes.
func limitCoding(h http.Header) {
	switch coding := strings.Join(h["Accept-Encoding"], ","); {
	case coding == "":
	case strings.Contains(coding, "gzip") && !strings.Contains(coding, "q=0"):
		h["Accept-Encoding"] = gzipCoding
	default:
		h["Accept-Encoding"] = identityCoding
	}
}

// dropBody ends a request body here. No playback method has one, and where two
// servers disagree about a body, they see a second request in it (request
// smuggling).
func dropBody(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength == 0 && len(r.TransferEncoding) == 0 {
		return
	}
	r.Body = http.NoBody
	r.ContentLength = 0
	r.TransferEncoding = nil
	r.Trailer = nil
	if r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close")
	}
}
