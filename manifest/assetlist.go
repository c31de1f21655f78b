package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
)

// jsonLevel is an open object or array.
type jsonLevel struct {
	object bool
	key    string // of the member whose value comes next or is open
	keyed  bool   // a value comes next
}

// assetList reads the JSON document of an interstitial (RFC 8216bis appendix D.2): an object
// with the array ASSETS of objects.
type assetList struct {
	*json.Decoder
	open []jsonLevel
	from int64 // the end of the token before the last one
}

func newAssetList(body []byte) *assetList {
	return &assetList{Decoder: json.NewDecoder(bytes.NewReader(body))}
}

// next reads the next token. isURI reports whether it may be a URI: the value of URI, or of
// a member of a vendor, which begins with X-.
func (l *assetList) next() (text string, isURI bool, err error) {
	l.from = l.InputOffset()
	token, err := l.Token()
	if err != nil {
		return "", false, err
	}
	var top *jsonLevel
	if len(l.open) > 0 {
		top = &l.open[len(l.open)-1]
	}
	text, isText := token.(string)
	delimiter, _ := token.(json.Delim)
	switch {
	case delimiter == '}' || delimiter == ']':
		l.open = l.open[:len(l.open)-1]
		return "", false, nil
	case top != nil && top.object && !top.keyed:
		top.key, top.keyed = text, true
		return "", false, nil
	case top != nil:
		top.keyed = false
		isURI = isText && len(l.open) == 3 && l.inAssets() && !l.open[1].object && top.object &&
			(top.key == "URI" || strings.HasPrefix(top.key, "X-") && !hasBlank([]byte(text)))
	}
	if delimiter != 0 {
		l.open = append(l.open, jsonLevel{object: delimiter == '{'})
	}
	return text, isURI, nil
}

func (l *assetList) inAssets() bool {
	return len(l.open) > 0 && l.open[0].object && l.open[0].key == "ASSETS"
}

// sniffAssetList reports whether body begins like an asset list. undecided is true if its
// members so far are others.
func sniffAssetList(body []byte) (found, undecided bool) {
	for l := newAssetList(body); ; {
		_, _, err := l.next()
		switch {
		case err != nil:
			return false, errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		case l.inAssets():
			return true, false
		case len(l.open) == 0:
			return false, false
		}
	}
}

// rewriteAssetList rewrites the URIs of an asset list. It writes absolute ones.
func rewriteAssetList(dst, src []byte, at Location) ([]byte, Stats, error) {
	m, e, stats := newMapper(at), newEditor(dst, src, at), Stats{}
	base := m.document()
	start := len(src) - len(bytes.TrimPrefix(src, byteOrderMark))
	if !json.Valid(src[start:]) {
		return e.finish(), stats, nil // no player reads it
	}
	for l := newAssetList(src[start:]); ; {
		text, isURI, err := l.next()
		if err != nil {
			return e.finish(), stats, nil
		}
		if !isURI || !m.leadsInside(base, []byte(text)) {
			continue
		}
		m.writeAbsolute()
		_, suffix := cutSuffix(trim([]byte(text)))
		var written bytes.Buffer
		encoder := json.NewEncoder(&written)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(string(m.out) + string(suffix)); err != nil {
			return nil, Stats{}, err
		}
		from := start + int(l.from)
		from += bytes.IndexByte(src[from:], '"')
		stats.Rewritten++
		if err := e.replace(from, start+int(l.InputOffset()), bytes.TrimSpace(written.Bytes())); err != nil {
			return nil, Stats{}, err
		}
	}
}
