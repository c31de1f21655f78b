package manifestbody

import (
	"bytes"
	"crypto/aes"
	"unicode"
	"unicode/utf8"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

const (
	// SniffLength is how many bytes tell most bodies from manifests.
	SniffLength = 32

	// MaxPrologLength is how many bytes of an XML document the gate reads to find its
	// root element. It holds a document with a longer prolog like a manifest.
	MaxPrologLength = 4 << 10
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

// Begins recognizes a manifest by the first bytes of a body. undecided is true
// if more bytes are needed.
func Begins(start []byte) (found, undecided bool) {
	found, undecided = beginsLikeHLS(start)
	format, more := manifest.Sniff(start)
	return found || format != 0, undecided || more
}

// MayBeText reports whether the first bytes of a body may be text. Segments and keys begin
// with bytes that no text has, except for AES-128 keys of printable characters.
func MayBeText(start []byte) bool {
	if len(start) == aes.BlockSize {
		return false // the whole body, because SniffLength is more
	}
	for cut := range min(utf8.UTFMax, len(start)+1) { // the last character may be cut
		if text := start[:len(start)-cut]; utf8.Valid(text) {
			return !bytes.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) && !unicode.IsSpace(r) })
		}
	}
	return false
}

// IsOptional reports whether a body of this beginning may pass unrewritten if it is too large:
// captions, and JSON, whose first 4 KiB need not tell whether it is an asset list.
func IsOptional(start []byte) bool {
	format, _ := manifest.Sniff(start)
	return format == manifest.WebVTT ||
		bytes.HasPrefix(bytes.TrimLeft(bytes.TrimPrefix(start, []byte("\ufeff")), " \t\r\n"), []byte("{"))
}
