package signedplayback

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/manifestbody"
	"github.com/signed-playback/caddy-signed-playback/internal/mediatype"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
	"github.com/signed-playback/caddy-signed-playback/manifest"
)

var (
	errManifestPartial  = errors.New("the origin answered with a part of a manifest")
	errManifestEncoding = errors.New("the origin compressed what may be a manifest by other means than gzip")
	errUnchanged        = errors.New("captions or JSON without a URI to rewrite")
	errRedirect         = errors.New("the origin redirects to a place outside the video's folder")
)

// newManifestMemory returns the memory for manifests of a process with a memory limit in bytes.
func newManifestMemory(limit int64) *manifestbody.Memory {
	return manifestbody.NewMemory(memoryWithin(limit, manifestbody.MinMemory, manifestbody.MaxMemory))
}

// processManifestMemory is shared by all gates of the process, also across
// config reloads.
var processManifestMemory = sync.OnceValue(func() *manifestbody.Memory { return newManifestMemory(debug.SetMemoryLimit(-1)) })

// isManifest reports whether its name or type says that this is a manifest.
func (w *response) isManifest() bool {
	return w.d.Manifest || !w.d.Media && !w.media && mediatype.Manifest(w.Header().Get("Content-Type")) != ""
}

// holdManifest begins to buffer a manifest, or what may be one but is compressed or
// has a long prolog.
func (w *response) holdManifest() {
	length, _ := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64)
	coding := contentCoding(w.Header())
	switch {
	case w.status == http.StatusPartialContent:
		w.repeat(whole)
	case length > manifest.MaxSize && w.optional:
		w.passMedia()
	case length > manifest.MaxSize:
		w.refuse(manifestbody.ErrSize)
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
		w.manifest = manifestbody.NewBuffer(w.d.app.manifests, length, coding != "", !w.forAll && w.d.mayLeadBelow())
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
	err := w.manifest.Write(w.d.request.Context(), p)
	switch {
	case err == nil:
		return len(p), nil
	case errors.Is(err, manifestbody.ErrSize) && w.optional:
		w.passMedia()
		if _, err = w.Write(w.manifest.Body); err != nil {
			return 0, err
		}
		w.manifest.Release()
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
	case errors.Is(err, manifestbody.ErrForm) && (!w.isManifest() || w.optional), errors.Is(err, errUnchanged):
		w.passMedia()
	}
	if w.state != holding {
		_, err = w.Write(w.manifest.Body)
		return err
	}
	if err != nil {
		w.refuse(manifestbody.NameCharset(err, w.Header().Get("Content-Type")))
		return w.err
	}
	h := w.Header()
	contentType := manifestbody.StandardType(format, h.Get("Content-Type"))
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
	w.manifest.Body = nil
	if w.manifest.ShrinkTo(int64(cap(rewritten))) {
		// A client that does not read must not keep the memory from others.
		_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(manifestbody.Timeout))
	}
	n, err := w.ResponseWriterWrapper.Write(rewritten)
	w.countBytes(int64(n))
	return err
}

func (w *response) rewrite() (rewritten []byte, format manifest.Format, err error) {
	body, format, err := w.manifest.Decode()
	if err != nil {
		return nil, 0, err
	}
	at, optional := w.d.location(), format == manifest.WebVTT || format == manifest.AssetList
	if optional && w.d.Manifest {
		return nil, 0, manifestbody.ErrForm
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
		at.Session, at.Playing = sessions.Prefix+text+"/", w.d.followsPlaylist(w.d.app.authority.Authority())
	}
	start := time.Now()
	rewritten, stats, err := manifest.Rewrite(make([]byte, 0, len(body)+len(body)/4), body, format, at, w.d.query, w.d.gate.features)
	if err != nil && text != "" {
		// What cannot lead below a session can still be played.
		at.Session = ""
		rewritten, stats, err = manifest.Rewrite(nil, body, format, at, w.d.query, w.d.gate.features)
	}
	w.d.app.metrics.ManifestSeconds.Observe(time.Since(start).Seconds())
	w.d.app.metrics.CountURIs(stats)
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
	if own, err := weborigin.ParseManifestHost(d.request.Host); err == nil {
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

// decisionKey is the context key under which a gate hands its decision to the media cache.
type decisionKey struct{}

// decisionOf returns the decision of the gate before a cache, nil without a gate.
func decisionOf(r *http.Request) *decision {
	d, _ := r.Context().Value(decisionKey{}).(*decision)
	return d
}

// findPurge finds out when the video was last purged. A video of the config needs the store
// for that only. While nobody knows, requests go past the cache, because what is there may
// have been purged.
func (d *decision) findPurge() {
	d.purged = d.settings.purged
	d.pastCache = d.pastCache || d.settingsUnknown
	if _, configured := d.app.videos[d.video]; !configured {
		return
	}
	switch video, err := d.app.state.Video(d.request.Context(), d.video); {
	case err != nil:
		d.pastCache = true
	case video != nil:
		d.purged = video.Purged
	}
}

// manifestWorkKey is the context key of the decision of a fill, see decision.forAll.
type manifestWorkKey struct{}

// The gate checks and rewrites manifests in the cache's request to the origin, once for all
// viewers. This header tells the gate so when the response comes out of the cache. The
// values are secrets of the process, because an origin could otherwise keep its manifests
// from being rewritten.
const checkedHeader = "Signed-Playback-Checked"

var (
	rewrittenMark = []string{"rewritten " + rand.Text()}
	unchangedMark = []string{"unchanged " + rand.Text()} // captions without a URI to rewrite
)

// errForEach is about manifests that contain the viewer's URL or depend on its query, so the
// gate rewrites them for each viewer.
var errForEach = errors.New("the manifest is different for each viewer")

// identifyRewriting returns a text that is different for gates that rewrite manifests
// differently: it depends on each option that the rewriting depends on.
func (g *Gate) identifyRewriting() string {
	decides := fmt.Sprintf("%q %q %v %q %v", g.originPath.String(), g.paths.Downloads, g.paths.AllowAmbiguous, g.manifestHosts, g.features)
	return fmt.Sprintf("\x00%x", sha256.Sum256([]byte(decides)))
}

// rewritesInCache reports whether the gate does its work on manifests in the cache's
// request to the origin. It does not for segments, which the cache passes on at once, nor
// if a handler between gate and cache has changed what a manifest is relative to.
func (d *decision) rewritesInCache(r *http.Request) bool {
	return (!d.Media || d.WebVTT) && r.Host == d.request.Host && r.URL.EscapedPath() == d.originPath
}

// forAll returns a decision with no more than the work on manifests needs. It contains
// nothing of the viewer and may outlive the request.
func (d *decision) forAll() *decision {
	return &decision{
		gate: d.gate, app: d.app, observer: silentObserver{}, Resource: d.Resource, video: strings.Clone(d.video),
		target: playbackpath.Target{Suffix: playbackpath.Suffix{Escaped: strings.Clone(d.target.Suffix.Escaped), Decoded: strings.Clone(d.target.Suffix.Decoded)}},
	}
}

// fill asks the next handler for the cache, and checks and rewrites the manifest that it
// answers with. The error is a refusal if no viewer may get the manifest.
func (d *decision) fill(to http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	d.request, d.query = r, r.URL.RawQuery
	w := &d.response
	w.ResponseWriter, w.d, w.media, w.forAll, w.extent = to, d, d.Media && !d.WebVTT, true, whole
	return w.attempt(next, r)
}

// passForAll passes a response to the cache, with the origin's headers.
func (w *response) passForAll(mark []string) {
	w.state = passing
	if mark != nil {
		w.Header()[checkedHeader] = mark
	}
	w.ResponseWriterWrapper.WriteHeader(w.status)
}

// takeMark removes the cache's header from a response, and reports what it says. The
// validators of a rewritten manifest are for the cache.
func (w *response) takeMark() (rewritten, unchanged bool) {
	h := w.Header()
	mark := h[checkedHeader]
	if mark == nil {
		return false, false
	}
	delete(h, checkedHeader)
	if len(mark) != 1 || w.forAll {
		return false, false
	}
	if rewritten = mark[0] == rewrittenMark[0]; rewritten {
		headerpolicy.DropValidators(h)
	}
	return rewritten, mark[0] == unchangedMark[0]
}
