package signedplayback

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/aes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/mediatype"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/queue"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// manifestTimeout bounds how long the origin may take for a whole manifest. A
// blocking playlist reload (LL-HLS) takes at most three target durations.
const manifestTimeout = time.Minute

var (
	errManifestIncomplete = errors.New("the origin's response broke off")
	errManifestPartial    = errors.New("the origin answered with a part of a manifest")
	errManifestSize       = fmt.Errorf("the manifest is larger than %d bytes", manifest.MaxSize)
	errManifestLength     = errors.New("the origin sends more bytes than its Content-Length")
	errManifestForm       = errors.New("the origin's response is neither HLS nor DASH")
	errManifestEmpty      = fmt.Errorf("%w: it is empty; does the origin have a site for the Host that it gets?", errManifestForm)
	errUnchanged          = errors.New("captions or JSON without a URI to rewrite")
	errManifestStart      = errors.New("the playlist does not begin with #EXTM3U in UTF-8")
	errManifestEncoding   = errors.New("the origin compressed what may be a manifest by other means than gzip")
	errRedirect           = errors.New("the origin redirects to a place outside the video's folder")
)

// Standard types of manifests.
const (
	webVTTType = "text/vtt"
	jsonType   = "application/json"
)

// standardType returns the type of a manifest of this format. Only the origin tells
// a patch from an MPD.
func standardType(format manifest.Format, contentType string) string {
	switch {
	case format == manifest.HLS:
		return mediatype.HLS
	case format == manifest.WebVTT:
		return webVTTType
	case format == manifest.AssetList:
		return jsonType
	case mediatype.Manifest(contentType) == mediatype.DASHPatch:
		return mediatype.DASHPatch
	}
	return mediatype.DASH
}

const (
	// sniffLength is how many bytes tell most bodies from manifests.
	sniffLength = 32

	// maxPrologLength is how many bytes of an XML document the gate reads to find its
	// root element. It holds a document with a longer prolog like a manifest.
	maxPrologLength = 4 << 10
)

// beginsLikeHLS recognizes a playlist by its first bytes, whatever its name and
// type, as players do. Some ignore white space. Browsers decode UTF-16 and
// ISO-2022-JP first, whose byte order marks, zeros and escape sequences count for
// nothing here; such a playlist is then refused. undecided is true if body ends within
// the first tag.
func beginsLikeHLS(body []byte) (yes, undecided bool) {
	const start = "#EXTM3U"
	found := 0
	for i := 0; i < len(body) && found < len(start); i++ {
		switch c := body[i]; {
		case c == start[found]:
			found++
		case c == '\x1b':
			i += 2 // the rest of an escape sequence
		case c > ' ' && c < utf8.RuneSelf:
			return false, false
		}
	}
	return found == len(start), found > 0
}

// isManifestStart recognizes a manifest by the first bytes of a body. undecided is true
// if more bytes are needed.
func isManifestStart(start []byte) (found, undecided bool) {
	found, undecided = beginsLikeHLS(start)
	return found || manifest.Sniff(start) != 0, undecided || manifest.Undecided(start)
}

// isText reports whether the first bytes of a body may be text. Segments and keys begin
// with bytes that no text has, except for AES-128 keys of printable characters.
func isText(start []byte) bool {
	if len(start) == aes.BlockSize {
		return false // the whole body, because sniffLength is more
	}
	for cut := range min(utf8.UTFMax, len(start)+1) { // the last character may be cut
		if text := start[:len(start)-cut]; utf8.Valid(text) {
			return !bytes.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) && !unicode.IsSpace(r) })
		}
	}
	return false
}

// isOptional reports whether a body of this beginning may pass unrewritten if it is too large:
// captions, and JSON, whose first 4 KiB need not tell whether it is an asset list.
func isOptional(start []byte) bool {
	return manifest.Sniff(start) == manifest.WebVTT ||
		bytes.HasPrefix(bytes.TrimLeft(bytes.TrimPrefix(start, []byte("\ufeff")), " \t\r\n"), []byte("{"))
}

// isManifest reports whether its name or type says that this is a manifest.
func (w *response) isManifest() bool {
	return w.d.Manifest || !w.d.Media && !w.media && mediatype.Manifest(w.Header().Get("Content-Type")) != ""
}

// holdManifest begins to buffer a manifest, or what may be one but is compressed or
// has a long prolog.
func (w *response) holdManifest() {
	length, err := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64)
	coding := contentCoding(w.Header())
	switch {
	case w.status == http.StatusPartialContent:
		w.repeat(whole)
	case err == nil && length > manifest.MaxSize && w.optional:
		w.passMedia()
	case err == nil && length > manifest.MaxSize:
		w.refuse(errManifestSize)
	case coding != "" && coding != "gzip" && coding != "x-gzip":
		w.refuse(errManifestEncoding)
	case w.isHead() && !w.d.Manifest:
		// Only the Content-Type tells, so it is too late to ask for the body.
		contentType := mediatype.Manifest(w.Header().Get("Content-Type"))
		headerpolicy.DropEntity(w.Header())
		w.Header().Set("Content-Type", contentType)
		w.pass()
	default:
		w.state = holding
		w.manifest = &manifestBuffer{memory: w.d.app.manifests, start: time.Now(), compressed: coding != ""}
		if !w.forAll && w.d.mayLeadBelow() {
			w.manifest.extra = sessionManifestFactor
		}
		if err == nil {
			w.manifest.length = int(length)
		}
	}
}

func contentCoding(h http.Header) string {
	coding := strings.ToLower(strings.Join(h["Content-Encoding"], ","))
	if coding == "identity" {
		return ""
	}
	return coding
}

func (w *response) hold(p []byte) (int, error) {
	err := w.manifest.write(w.d.request.Context(), p)
	switch {
	case err == nil:
		return len(p), nil
	case errors.Is(err, errManifestSize) && w.optional:
		w.passMedia()
		if _, err = w.Write(w.manifest.body); err != nil {
			return 0, err
		}
		w.manifest.release()
		return w.Write(p)
	}
	w.refuse(err)
	return 0, w.err
}

// sendManifest sends the rewritten manifest. It drops all headers that describe
// the bytes of the original.
func (w *response) sendManifest() error {
	rewritten, format, err := w.rewrite()
	switch {
	case errors.Is(err, errUnchanged) && w.forAll:
		w.passForAll(unchangedMark)
	case errors.Is(err, errForEach):
		w.passForAll(nil)
	case errors.Is(err, errManifestForm) && (!w.isManifest() || w.optional), errors.Is(err, errUnchanged):
		w.passMedia()
	}
	if w.state != holding {
		_, err = w.Write(w.manifest.body)
		return err
	}
	if err != nil {
		w.refuse(nameCharset(err, w.Header().Get("Content-Type")))
		return w.err
	}
	h := w.Header()
	contentType := standardType(format, h.Get("Content-Type"))
	headerpolicy.DropBody(h)
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(rewritten)))
	if w.forAll {
		w.passForAll(rewrittenMark)
	} else {
		headerpolicy.DropValidators(h)
		w.pass()
	}
	if w.isHead() || w.state == denied {
		return w.err
	}
	w.manifest.body = nil
	if w.manifest.shrinkTo(int64(cap(rewritten))) {
		// A client that does not read must not keep the memory from others.
		_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(manifestTimeout))
	}
	n, err := w.ResponseWriterWrapper.Write(rewritten)
	w.countBytes(int64(n))
	return err
}

// nameCharset adds to an error the charset that the origin declares, if it is another than UTF-8.
// What is ASCII is read in any charset, and manifests have none for viewers.
func nameCharset(err error, contentType string) error {
	const longest = 40
	_, parameters, _ := mime.ParseMediaType(contentType)
	charset := parameters["charset"]
	if charset == "" || len(charset) > longest || strings.EqualFold(charset, "utf-8") {
		return err
	}
	return fmt.Errorf("%w; the origin declares the charset %q, want UTF-8", err, charset)
}

func (w *response) rewrite() (rewritten []byte, format manifest.Format, err error) {
	body := w.manifest.body
	if w.manifest.compressed {
		if body, err = decompressManifest(body); err != nil {
			return nil, 0, err
		}
	}
	if format = manifest.Sniff(body); format == 0 {
		if isHLS, _ := beginsLikeHLS(body); isHLS {
			return nil, 0, errManifestStart
		}
		if len(body) == 0 {
			return nil, 0, errManifestEmpty
		}
		return nil, 0, errManifestForm
	}
	at, optional := w.d.location(), format == manifest.WebVTT || format == manifest.AssetList
	if optional && w.d.Manifest {
		return nil, 0, errManifestForm
	}
	hasAssets := format == manifest.AssetList || format == manifest.HLS && bytes.Contains(body, []byte("X-ASSET-"))
	if w.forAll && (hasAssets || format == manifest.HLS && bytes.Contains(body, []byte("QUERYPARAM"))) {
		return nil, 0, errForEach
	}
	if hasAssets {
		at.Base = w.d.viewerFolder()
	}
	refused := playbackpath.RefusedNames{Rules: w.d.gate.paths}
	at.Refuses = refused.Refuse
	text := ""
	if !w.forAll && w.d.mayLeadBelow() {
		text = w.d.newSessionText()
		at.Session, at.Playing = sessions.Prefix+text+"/", w.d.followsPlaylist(w.d.app.authority.get())
	}
	start := time.Now()
	rewritten, stats, err := manifest.Rewrite(make([]byte, 0, len(body)+len(body)/4), body, format, at, w.d.query, w.d.gate.features)
	if err != nil && text != "" {
		// What cannot lead below a session can still be played.
		at.Session = ""
		rewritten, stats, err = manifest.Rewrite(nil, body, format, at, w.d.query, w.d.gate.features)
	}
	w.d.app.metrics.manifestSeconds.Observe(time.Since(start).Seconds())
	w.d.app.metrics.countURIs(stats)
	if stats.Refused > 0 {
		w.d.warnOfRefusedURIs(at.Path, stats.Refused, refused)
	}
	switch {
	case optional && stats.Rewritten == 0:
		err = errUnchanged
	case err == nil && stats.Rooted:
		err = w.d.beginSession(text)
	case err == nil && !optional:
		err = w.d.unlessReported(w.d.checkManifestStart())
	}
	return rewritten, format, err
}

// warnOfRefusedURIs logs that viewers cannot load files of a manifest. The message has
// the path, because the logger keeps each message once a minute.
func (d *decision) warnOfRefusedURIs(path string, count int, refused playbackpath.RefusedNames) {
	fix := "rename the files"
	if refused.Allowable {
		fix = "set `ambiguous_paths allow` in signed_playback"
	}
	d.gate.manifestLog.Warn("the gate refuses files of the manifest "+path, zap.Int("uris", count), zap.Error(refused.Why), zap.String("fix", fix))
}

// decompressManifest undoes gzip, for files that the origin has only compressed. The size limit stops a gzip bomb.
func decompressManifest(body []byte) ([]byte, error) {
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

const (
	// freeManifestSize is up to which size a manifest is buffered without a
	// reservation: about the memory that copying any response takes.
	freeManifestSize = 32 << 10

	// A manifest takes at most this many times its size: itself, the rewritten
	// manifest, which manifest.Rewrite bounds, and its compressed form.
	manifestFactor           = 1 + manifest.MaxGrowth
	compressedManifestFactor = manifestFactor + 1
	sessionManifestFactor    = manifest.MaxSessionGrowth - manifest.MaxGrowth // more, if it leads below a session

	// maxManifestMemory bounds the memory for all manifests, together with a
	// quarter of the memory limit of the process.
	maxManifestMemory = 256 << 20

	// maxManifestWait is about how long players wait for a manifest.
	maxManifestWait = 10 * time.Second

	// maxManifestsWaiting bounds how many manifests wait for memory. Their
	// connections to the origin are open meanwhile.
	maxManifestsWaiting = 1024
)

var errManifestMemory = errors.New("too many large manifests are buffered at once; try again in a moment")

// manifestMemory bounds the memory of all buffered manifests, because a viewer
// could otherwise have as many large ones buffered as they can send requests. A
// manifest reserves all that it can need once, before the memory is allocated,
// and the gate reads no more from the origin until then. So no two manifests wait
// for each other. It is safe for concurrent use.
type manifestMemory struct {
	free     *queue.Queue
	reserved atomic.Int64 // bytes, for the metric
}

// processManifestMemory is shared by all gates of the process, also across
// config reloads.
var processManifestMemory = sync.OnceValue(func() *manifestMemory {
	return newManifestMemory(debug.SetMemoryLimit(-1))
})

// newManifestMemory returns the memory for a process with a memory limit in
// bytes. The largest manifest always fits in.
func newManifestMemory(limit int64) *manifestMemory {
	bytes := memoryWithin(limit, (compressedManifestFactor+sessionManifestFactor)*manifest.MaxSize, maxManifestMemory)
	return &manifestMemory{free: queue.New(semaphore.NewWeighted(int64(bytes)), maxManifestsWaiting, maxManifestWait)}
}

// manifestBuffer holds the body of a manifest until it is complete.
type manifestBuffer struct {
	memory     *manifestMemory
	body       []byte
	start      time.Time
	length     int // by Content-Length, 0 if unknown
	extra      int // how many times its size more the rewritten one may have
	compressed bool
	reserved   int64 // bytes of memory
}

func (b *manifestBuffer) write(ctx context.Context, p []byte) error {
	size := len(b.body) + len(p)
	switch {
	// A request for a resource that only its type or first bytes tell to be a
	// manifest has no deadline.
	case time.Since(b.start) > manifestTimeout:
		return errManifestIncomplete
	case size > manifest.MaxSize:
		return errManifestSize
	case b.length > 0 && size > b.length:
		return errManifestLength
	}
	if err := b.reserve(ctx, max(size, b.length)); err != nil {
		return err
	}
	b.body = append(slices.Grow(b.body, max(0, b.length-len(b.body))), p...)
	return nil
}

// reserve waits for memory for a manifest of this many bytes. If the length is
// unknown, it reserves memory for the largest.
func (b *manifestBuffer) reserve(ctx context.Context, size int) error {
	if b.reserved > 0 || size <= freeManifestSize && !b.compressed {
		return nil
	}
	bytes := int64((manifestFactor + b.extra) * cmp.Or(b.length, manifest.MaxSize))
	if b.compressed {
		bytes = int64((compressedManifestFactor + b.extra) * manifest.MaxSize)
	}
	if err := b.memory.free.Enter(ctx, bytes); err != nil {
		if ctx.Err() == nil {
			err = errManifestMemory
		}
		return err
	}
	b.reserved = bytes
	b.memory.reserved.Add(bytes)
	return nil
}

// shrinkTo gives back all reserved memory except this many bytes, and reports whether
// any is left.
func (b *manifestBuffer) shrinkTo(bytes int64) (left bool) {
	if excess := b.reserved - bytes; excess > 0 {
		b.memory.free.Leave(excess)
		b.memory.reserved.Add(-excess)
		b.reserved = bytes
	}
	return b.reserved > 0
}

// release gives back the body and all memory. b may be nil.
func (b *manifestBuffer) release() {
	if b == nil {
		return
	}
	b.body = nil
	b.shrinkTo(0)
}

// redirect passes on a redirect that stays inside the video's folder, as a path
// below the viewer's own prefix, and refuses any other.
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

// inViewerSpace reports whether a redirect leads below the prefix of the viewer's
// URL. Handlers of this server redirect there, because they know the original
// path.
func (d *decision) inViewerSpace(location string) bool {
	below, ok := strings.CutPrefix(location, "/"+d.target.First()+"/")
	if !ok {
		return false
	}
	path, _, _ := strings.Cut(below, "?")
	_, err := d.gate.paths.ParseSuffix(path, d.target.First())
	return err == nil
}

// location says where the requested resource is on the origin. The gate's host
// name counts as the origin's own, because origins that write absolute URIs take
// it from the Host header.
func (d *decision) location() manifest.Location {
	hosts := d.gate.manifestHosts
	if own, err := parseManifestHost(d.request.Host); err == nil {
		hosts = append(slices.Clip(hosts), own)
	}
	folder := d.gate.originPath.Folder(d.video) + "/"
	return manifest.Location{Path: folder + d.target.Suffix.Escaped, Folder: folder, Hosts: hosts}
}

// viewerFolder returns the absolute URL that the video's folder has for the viewer. Behind a
// proxy that terminates TLS, only public_url or a trusted X-Forwarded-Proto tells the scheme.
func (d *decision) viewerFolder() string {
	path := d.target.Folder()
	r := d.request
	scheme := "http"
	switch trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool); {
	case r.TLS != nil:
		scheme = "https"
	case d.app.publicURL != "":
		return d.app.publicURL + path
	case trusted && r.Header.Get("X-Forwarded-Proto") == "https":
		scheme = "https"
	}
	// A prefix before the token, which handle_path has removed. Whoever makes a link chooses its
	// bytes, which must not end the quotes of an attribute.
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		target, _, _ := strings.Cut(original.RequestURI, "?")
		prefix, found := strings.CutSuffix(target, path+d.target.Suffix.Escaped)
		if found && strings.HasPrefix(target, "/") && playbackpath.HasOnlyPchar(prefix) {
			path = prefix + path
		}
	}
	return scheme + "://" + r.Host + path
}

// parseManifestHost reads host[:port] into the form that package manifest
// compares.
func parseManifestHost(text string) (string, error) {
	if strings.Contains(text, "/") {
		return "", fmt.Errorf("manifest host %q must not specify protocol or path", text)
	}
	host, port, err := weborigin.SplitHostPort(text)
	if err == nil {
		host, err = weborigin.ParseWrittenHost(host)
	}
	if err != nil {
		return "", fmt.Errorf("manifest host %q is not host[:port]: %w", text, err)
	}
	return weborigin.JoinHostPort(host, port), nil
}

// parseManifestFeature reads the name of a feature in the config.
func parseManifestFeature(name string) (manifest.Features, error) {
	switch name {
	case "steering":
		return manifest.Steering, nil
	case "reporting":
		return manifest.Reporting, nil
	}
	return 0, fmt.Errorf("manifest feature %q is unknown; known are steering and reporting", name)
}
