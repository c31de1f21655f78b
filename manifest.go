package signedplayback

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// manifestTimeout bounds how long the origin may take for a whole manifest. A
// blocking playlist reload (LL-HLS) takes three target durations at the most.
const manifestTimeout = time.Minute

var (
	errManifestIncomplete = errors.New("the origin's response broke off")
	errManifestPartial    = errors.New("the origin answered with a part of a manifest")
	errManifestSize       = fmt.Errorf("the manifest is larger than %d bytes", manifest.MaxSize)
	errManifestLength     = errors.New("the origin sends more than it has told")
	errManifestForm       = errors.New("the origin's response is neither HLS nor DASH")
	errManifestEncoding   = errors.New("the origin compressed the manifest by other means than gzip")
	errRedirect           = errors.New("the origin redirects to a place outside the video's folder")
)

// prepareManifestRequest asks the origin for all of a manifest, as it is: a
// part, a compressed form, or the answer that nothing has changed since another
// token could not be rewritten. A HEAD becomes a GET, for the length of what is
// rewritten is only known then.
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

// askForWhole asks the origin for all of a resource, uncompressed.
func askForWhole(h http.Header) {
	delete(h, "Range")
	delete(h, "If-Range")
	h["Accept-Encoding"] = []string{"identity"}
}

// isManifestType reports whether a Content-Type is that of a manifest.
func isManifestType(contentType string) bool {
	if contentType == "" {
		return false
	}
	mediaType, _, _ := strings.Cut(contentType, ";")
	switch strings.ToLower(strings.TrimSpace(mediaType)) {
	case "application/vnd.apple.mpegurl", "application/x-mpegurl", "application/mpegurl",
		"audio/mpegurl", "audio/x-mpegurl", "audio/vnd.apple.mpegurl", "video/x-mpegurl",
		"application/dash+xml", "application/dash-patch+xml", "video/vnd.mpeg.dash.mpd":
		return true
	}
	return false
}

const (
	hlsStart      = "#EXTM3U"
	byteOrderMark = "\ufeff"
	sniffLength   = len(byteOrderMark + hlsStart) // enough to tell a playlist
)

// beginsLikeHLS tells a playlist under a segment's name and type. Players find
// out the same way.
func beginsLikeHLS(body []byte) bool {
	return bytes.HasPrefix(bytes.TrimPrefix(body, []byte(byteOrderMark)), []byte(hlsStart))
}

// hold begins to keep a manifest back.
func (w *response) hold() {
	length, err := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64)
	coding := w.contentCoding()
	switch {
	case w.status == http.StatusPartialContent:
		w.refuse(errManifestPartial)
	case err == nil && length > manifest.MaxSize:
		w.refuse(errManifestSize)
	case isCompressed(coding) && coding != "gzip" && coding != "x-gzip":
		w.refuse(errManifestEncoding)
	case w.d.request.Method == http.MethodHead && !w.d.manifest:
		// Known by its type only, when it was too late to ask for its body.
		dropEntityHeaders(w.Header())
		w.pass()
	default:
		if err != nil {
			length = 0
		}
		w.state, w.share = holding, w.d.app.manifests.newShare(int(length), isCompressed(coding))
	}
}

// contentCoding returns how the origin has compressed a body.
func (w *response) contentCoding() string {
	return strings.ToLower(strings.Join(w.Header()["Content-Encoding"], ","))
}

func isCompressed(coding string) bool { return coding != "" && coding != "identity" }

func (w *response) keep(p []byte) (int, error) {
	size, told := len(w.held)+len(p), w.share.length
	var err error
	switch {
	// The request of what is a manifest by its type alone has no deadline.
	case time.Since(w.share.began) > manifestTimeout:
		err = errManifestIncomplete
	case size > manifest.MaxSize:
		err = errManifestSize
	case told > 0 && size > told:
		err = errManifestLength
	default:
		err = w.share.grow(w.d.request.Context(), size)
	}
	if err != nil {
		w.refuse(err)
		return 0, w.err
	}
	if size > cap(w.held) {
		// In one piece if it is known how large, lest most of what is allocated
		// be pieces that were outgrown.
		larger := make([]byte, len(w.held), max(size, told, min(2*cap(w.held), w.share.room)))
		copy(larger, w.held)
		w.held = larger
	}
	w.held = append(w.held, p...)
	return len(p), nil
}

// sendManifest sends the rewritten manifest, with nothing left of what the
// origin said about the bytes that it was before.
func (w *response) sendManifest() error {
	rewritten, err := w.rewrite()
	if err != nil {
		w.refuse(err)
		return w.err
	}
	h := w.Header()
	contentType := h["Content-Type"]
	dropEntityHeaders(h)
	if contentType != nil {
		h["Content-Type"] = contentType
	}
	h.Set("Content-Length", strconv.Itoa(len(rewritten)))
	w.pass()
	if w.d.request.Method == http.MethodHead {
		return nil
	}
	w.held = nil
	w.share.shrinkTo(int64(cap(rewritten)))
	if w.share.bytes > 0 {
		// Or whoever does not read would keep others' from being held.
		_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(manifestTimeout))
	}
	_, err = w.ResponseWriterWrapper.Write(rewritten)
	return err
}

func (w *response) rewrite() ([]byte, error) {
	body := w.held
	if w.share.compressed {
		var err error
		if body, err = decodeManifest(body); err != nil {
			return nil, err
		}
	}
	format := manifest.Sniff(body)
	if format == 0 {
		return nil, errManifestForm
	}
	start := time.Now()
	rewritten, stats, err := manifest.Rewrite(make([]byte, 0, len(body)+len(body)/4), body, format, w.d.location(), w.d.query)
	w.d.app.metrics.manifestSeconds.Observe(time.Since(start).Seconds())
	w.d.app.metrics.countURIs(stats)
	return rewritten, err
}

// decodeManifest undoes gzip, which was not asked for, within the bound of all
// manifests.
func decodeManifest(body []byte) ([]byte, error) {
	reader, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("decompressing the manifest: %w", err)
	}
	decoded, err := io.ReadAll(io.LimitReader(reader, manifest.MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("decompressing the manifest: %w", err)
	}
	if len(decoded) > manifest.MaxSize {
		return nil, errManifestSize
	}
	return decoded, nil
}

// redirect keeps a redirect inside the video's folder, where the viewer's own
// prefix leads; out of it, nobody follows.
func (w *response) redirect() {
	locations := w.Header()["Location"]
	if len(locations) != 1 {
		w.refuse(errRedirect)
		return
	}
	location, inside := w.d.location().Map(locations[0])
	if !inside && !w.d.inViewerSpace(locations[0]) {
		w.refuse(errRedirect)
		return
	}
	w.Header().Set("Location", location)
	w.pass()
}

// inViewerSpace reports whether a redirect names a place below the prefix that
// the viewer has asked under. Handlers of this server redirect so, for they know
// the path as it came.
func (d *decision) inViewerSpace(location string) bool {
	below, ok := strings.CutPrefix(location, "/"+cmp.Or(d.target.token, d.target.videoID)+"/")
	if !ok {
		return false
	}
	path, _, _ := strings.Cut(below, "?")
	_, err := parseSuffix(path)
	return err == nil
}

// location says where the origin has what the viewer asks for. The name under
// which the viewer knows the gate counts as the origin's own, because origins
// that build absolute URIs take it from the Host header.
func (d *decision) location() manifest.Location {
	hosts := d.gate.manifestHosts
	if own, err := parseManifestHost(d.request.Host); err == nil {
		hosts = append(slices.Clip(hosts), own)
	}
	folder := d.gate.originPath.folder(d.video) + "/"
	return manifest.Location{Path: folder + d.target.suffix.escaped, Folder: folder, Hosts: hosts}
}

// parseManifestHost reads host[:port] into the form in which package manifest
// compares.
func parseManifestHost(text string) (string, error) {
	if strings.Contains(text, "/") {
		return "", fmt.Errorf("manifest host %q must not specify protocol or path", text)
	}
	host, port, hasPort, err := splitHostPort(text)
	if err == nil {
		host, err = parseHost(host)
	}
	if err != nil {
		return "", fmt.Errorf("manifest host %q is not host[:port]: %w", text, err)
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if hasPort {
		host += ":" + strconv.Itoa(int(port))
	}
	return host, nil
}

// dropEntityHeaders removes what describes a body that the viewer does not get.
func dropEntityHeaders(h http.Header) {
	for _, name := range []string{
		"Content-Type", "Content-Length", "Content-Encoding", "Content-Range", "Content-Location",
		"Content-Disposition", "Content-Md5", "Content-Digest", "Repr-Digest", "Digest",
		"Etag", "Last-Modified", "Accept-Ranges", "Age", "Location", "Trailer",
	} {
		delete(h, name)
	}
}
