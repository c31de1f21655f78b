package player

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"net/http"
	"time"
)

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
