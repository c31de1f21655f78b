// Package manifestbody recognizes the body of a manifest, and buffers it until it is complete, in
// memory that all manifests of the process share.
package manifestbody

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"mime"
	"strings"

	"github.com/signed-playback/caddy-signed-playback/internal/mediatype"
	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// The errors about what the origin has answered.
var (
	ErrIncomplete = errors.New("the origin's response broke off")
	ErrSize       = fmt.Errorf("the manifest is larger than %d bytes", manifest.MaxSize)
	ErrForm       = errors.New("the origin's response is neither HLS nor DASH")
	ErrLength     = errors.New("the origin sends more bytes than its Content-Length")

	errEmpty = fmt.Errorf("%w: it is empty; does the origin have a site for the Host that it gets?", ErrForm)
	errStart = errors.New("the playlist does not begin with #EXTM3U in UTF-8")
)

// Decode returns the manifest in a complete body, and its format. The error wraps ErrForm if it is none.
func (b *Buffer) Decode() (body []byte, f manifest.Format, err error) {
	if body = b.Body; b.compressed {
		if body, err = decompress(body); err != nil {
			return nil, 0, err
		}
	}
	f, _ = manifest.Sniff(body)
	isHLS, _ := beginsLikeHLS(body)
	switch {
	case f != 0:
		return body, f, nil
	case isHLS:
		return nil, 0, errStart
	case len(body) == 0:
		return nil, 0, errEmpty
	}
	return nil, 0, ErrForm
}

// decompress undoes gzip, for files that the origin has only
// compressed. The size limit stops a gzip bomb.
func decompress(body []byte) ([]byte, error) {
	reader, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("decompressing the manifest: %w", err)
	}
	decoded, err := io.ReadAll(io.LimitReader(reader, manifest.MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("decompressing the manifest: %w", err)
	}
	if len(decoded) > manifest.MaxSize {
		return nil, ErrSize
	}
	return decoded, nil
}

// StandardType returns the type of a manifest of this format. Only the origin tells
// a patch from an MPD.
func StandardType(format manifest.Format, contentType string) string {
	switch {
	case format == manifest.HLS:
		return mediatype.HLS
	case format == manifest.WebVTT:
		return "text/vtt"
	case format == manifest.AssetList:
		return "application/json"
	case mediatype.Manifest(contentType) == mediatype.DASHPatch:
		return mediatype.DASHPatch
	}
	return mediatype.DASH
}

// NameCharset adds to an error the charset that the origin declares, if it is another than UTF-8.
// What is ASCII is read in any charset, and manifests have none for viewers.
func NameCharset(err error, contentType string) error {
	const longest = 40
	_, parameters, _ := mime.ParseMediaType(contentType)
	charset := parameters["charset"]
	if charset == "" || len(charset) > longest || strings.EqualFold(charset, "utf-8") {
		return err
	}
	return fmt.Errorf("%w; the origin declares the charset %q, want UTF-8", err, charset)
}
