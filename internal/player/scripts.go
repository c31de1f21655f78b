package player

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"net/http"
	"regexp"
	"time"
	"unicode/utf8"
)

// definesHls matches what a build of hls.js for script elements does at its end. The
// modules, the worker, the type declarations and the source maps of the package, and
// pages that a server sends instead of a file, do not.
var definesHls = regexp.MustCompile(`\.Hls\s*=[^=]`)

// The names that tell which build a file is: all builds have the first, those with
// captions and DRM the second, and those from version 1.5 on the third, without which
// iPhones do not play.
var anyBuild, fullBuild, newBuild = []byte("hlsManifestLoading"), []byte("createMediaKeys"), []byte("ManagedMediaSource")

// checkHLSJS refuses files that operators configure by mistake. With such a file nothing
// would play, or some videos without sound, and viewers would not see why.
func checkHLSJS(hlsJS []byte) error {
	start := bytes.TrimSpace(bytes.TrimPrefix(hlsJS, []byte("\uFEFF")))
	isBuild := bytes.Contains(hlsJS, anyBuild)
	switch {
	case hlsJS == nil:
		return nil
	case len(start) == 0:
		return errors.New("it is empty")
	case !utf8.Valid(hlsJS):
		return errors.New("it is not text; perhaps it is still packed")
	case start[0] == '<':
		return errors.New("it is an HTML page")
	case start[0] == '{' || !definesHls.Match(hlsJS):
		return errors.New("it is no build of hls.js for a script element; perhaps it is a module or a source map")
	case isBuild && !bytes.Contains(hlsJS, fullBuild):
		return errors.New("it is the light build of hls.js, which has no captions, no DRM and no separate audio")
	case isBuild && !bytes.Contains(hlsJS, newBuild):
		return errors.New("it is a version of hls.js before 1.5, with which iPhones do not play")
	}
	return nil
}

//go:embed sdk.js
var sdkJS string

var sdkFile = newScriptFile([]byte(sdkJS))

// ServeSDK serves the player SDK, the script with which a page that embeds the player page
// controls it. It is the same for everybody, so every site may load it and every cache may
// store it. The time is short, because its address names no version.
func ServeSDK(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	h.Set("Cache-Control", "public, max-age=300")
	sdkFile.serve(w, r)
}

// scriptFile is a script that a page loads by its URL.
type scriptFile struct {
	content []byte
	etag    string
}

func newScriptFile(content []byte) *scriptFile {
	sum := sha256.Sum256(content)
	return &scriptFile{content: bytes.Clone(content), etag: `"` + hex.EncodeToString(sum[:16]) + `"`}
}

func (f *scriptFile) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/javascript; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("ETag", f.etag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.content))
}
