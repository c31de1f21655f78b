// Package token reads, verifies and makes the signed tokens that stand in a
// playback URL where the video id would.
//
// A token is a JSON Web Token (RFC 7519) in the compact serialization of RFC
// 7515, signed with RS256. This package accepts one spelling of it: at most
// [MaxLength] bytes, canonical base64url without padding, a header of `alg`,
// `kid` and `typ` alone, and JSON that no two readers can read differently. A
// gate that caches decisions under a token's bytes, and a revocation list, are
// only as good as that.
//
// A back end that mints its own tokens needs [ParseSigningKey] and [Sign];
// [Verify] is there for its tests. The package knows nothing of HTTP.
package token

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
)

const (
	// MaxLength is how many bytes a token may have.
	MaxLength = 8192

	// MaxDepth bounds the nesting of a payload. Access rules need four levels.
	MaxDepth = 16

	// maxDate bounds what is read as a date at all: the largest integer that
	// every JSON reader reads exactly (RFC 8259 section 6).
	maxDate = 1 << 53

	// maxExpiry is the last second of the year 9999. A later `exp` is a
	// mistake, most often milliseconds, that would make a token last for ever.
	maxExpiry = 253402300799

	maxVideoID = 64
)

// Claims are what a token says. Other claims than these are ignored.
type Claims struct {
	// VideoID is the `sub` claim, the video that the token opens. See
	// [ValidVideoID].
	VideoID string

	// KeyID is the `kid` of the key that has signed. Sign sets it from its key.
	KeyID string

	// ExpiresAt is the `exp` claim, required, in whole seconds. From that
	// second on the token is refused.
	ExpiresAt time.Time

	// NotBefore is the `nbf` claim in whole seconds. Zero: no such claim.
	NotBefore time.Time

	// Downloadable is the `downloadable` claim. Default: false.
	Downloadable bool

	// AccessRules is the `accessRules` claim, a JSON array, as it stands in the
	// payload. Nil: no such claim. Whoever enforces the rules decodes them; see
	// [AccessRule] for their form.
	AccessRules json.RawMessage
}

// AccessRule is one element of the `accessRules` claim, for those who sign. The
// first rule that matches a viewer decides; a viewer whom none matches is
// allowed, so a list of "allow" rules wants a last rule of type "any" with
// action "block".
type AccessRule struct {
	// Type is "any", "ip.src" or "ip.geoip.country".
	Type string `json:"type"`
	// Action is "allow" or "block".
	Action string `json:"action"`
	// IP has the addresses and CIDRs of an "ip.src" rule.
	IP []string `json:"ip,omitempty"`
	// Country has the ISO 3166-1 alpha-2 codes of an "ip.geoip.country" rule.
	Country []string `json:"country,omitempty"`
}

// Header is a token whose header has been checked and whose payload has not
// been decoded. A verifier that looks up [Header.KeyID] before it calls
// [Header.ParsePayload] rejects a flood of tokens with unknown keys at little
// cost.
//
// The zero Header names no key and has no valid payload.
type Header struct {
	keyID     string
	signed    string // header and payload in base64url, with the dot between them
	payload   string // base64url
	signature string // base64url
}

// Parsed is a token whose form has been checked and whose signature has not.
// Trust nothing that it says before Verify.
type Parsed struct {
	claims    Claims
	signed    string
	signature []byte
}

// Parse checks the form of a compact token, which is everything that can be
// checked without a key. It is ParseHeader and [Header.ParsePayload] in one
// call. Its errors wrap ErrMalformed or ErrAlgorithm.
func Parse(compact string) (Parsed, error) {
	header, err := ParseHeader(compact)
	if err != nil {
		return Parsed{}, err
	}
	return header.ParsePayload()
}

// ParseHeader checks the length, the number of segments and the alphabet of a
// whole compact token, then decodes and checks its header. Its errors wrap
// ErrMalformed or ErrAlgorithm.
func ParseHeader(compact string) (Header, error) {
	if len(compact) > MaxLength {
		return Header{}, errLength
	}
	if strings.Count(compact, ".") != 2 {
		return Header{}, errSegments
	}
	for i := range len(compact) {
		// The decoder skips line breaks, so they must not reach it.
		if c := compact[i]; !base64url[c] && c != '.' {
			return Header{}, errAlphabet
		}
	}
	dot := strings.LastIndexByte(compact, '.')
	h := Header{signed: compact[:dot], signature: compact[dot+1:]}
	var header string
	header, h.payload, _ = strings.Cut(h.signed, ".")
	decoded, err := strict.DecodeString(header)
	if err != nil {
		return Header{}, errAlphabet
	}
	if h.keyID, err = parseHeader(decoded); err != nil {
		return Header{}, err
	}
	return h, nil
}

// KeyID returns the `kid` of the header, or "" if the header has none. A `kid`
// that the header has is never empty.
func (h Header) KeyID() string { return h.keyID }

// ParsePayload decodes and checks the payload and decodes the signature. If
// header and payload both have a `kid`, they must be equal. An empty signature
// passes, because only a key can tell that it is invalid. Errors wrap
// ErrMalformed.
func (h Header) ParsePayload() (Parsed, error) {
	payload, err := strict.DecodeString(h.payload)
	if err != nil {
		return Parsed{}, errAlphabet
	}
	signature, err := strict.DecodeString(h.signature)
	if err != nil {
		return Parsed{}, errAlphabet
	}
	claims, err := parsePayload(payload)
	if err != nil {
		return Parsed{}, err
	}
	switch {
	case claims.KeyID == "":
		claims.KeyID = h.keyID
	case h.keyID != "" && h.keyID != claims.KeyID:
		return Parsed{}, errKeyIDs
	}
	return Parsed{claims, h.signed, signature}, nil
}

// Unverified returns the claims of a token that nobody has vouched for yet,
// for showing them or for finding its key.
func (p Parsed) Unverified() Claims { return p.claims }

// Documents returns the two JSON documents of a token as they were written, for
// showing them.
func (p Parsed) Documents() (header, payload string) {
	encodedHeader, encodedPayload, _ := strings.Cut(p.signed, ".")
	// Parse has decoded both.
	h, _ := strict.DecodeString(encodedHeader)
	l, _ := strict.DecodeString(encodedPayload)
	return string(h), string(l)
}

// ValidVideoID reports whether id is a video id: 1 to 64 of A-Z, a-z, 0-9, "_"
// and "-". Such an id is safe as a segment of a path and as a storage key.
func ValidVideoID(id string) bool {
	if len(id) == 0 || len(id) > maxVideoID {
		return false
	}
	for i := range len(id) {
		if !base64url[id[i]] {
			return false
		}
	}
	return true
}

// base64url is the alphabet of RFC 4648 section 5, which is that of video ids
// too.
var base64url = func() (set [256]bool) {
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
		set[c] = true
	}
	return set
}()

// strict refuses set bits behind the last whole byte, so that no other last
// character decodes to the same bytes.
var strict = base64.RawURLEncoding.Strict()

// parseHeader checks the JOSE header and returns its `kid`, or "" for none. The
// members that other verifiers act on (`jwk`, `jku`, `x5c`, `crit`, `b64`, …)
// are refused by not being on the list.
func parseHeader(header []byte) (keyID string, err error) {
	members, err := object(header)
	if err != nil || header[len(header)-1] != '}' {
		return "", errHeader
	}
	var alg strictjson.Value
	var unknown, badType, badKeyID bool
	for name, value := range members.Members() {
		switch string(name) {
		case "alg":
			alg = value
		case "kid":
			var ok bool
			keyID, ok = value.Text()
			badKeyID = !ok || keyID == ""
		case "typ":
			text, ok := value.Plain()
			badType = !ok || string(text) != "JWT"
		default:
			unknown = true
		}
	}
	// The algorithm comes first, so that a token that another verifier would
	// have taken as unsigned is reported as that.
	switch text, ok := alg.Plain(); {
	case !ok || string(text) != "RS256":
		return "", errAlgorithm
	case unknown:
		return "", errMember
	case badType:
		return "", errType
	case badKeyID:
		return "", errKeyID
	}
	return keyID, nil
}

func parsePayload(payload []byte) (c Claims, err error) {
	members, err := object(payload)
	if err != nil {
		return Claims{}, errPayload
	}
	for name, value := range members.Members() {
		switch string(name) {
		case "sub":
			// The signed bytes themselves must be the id: no escapes.
			text, ok := value.Plain()
			if c.VideoID = string(text); !ok || !ValidVideoID(c.VideoID) {
				return Claims{}, errSubject
			}
		case "kid":
			var ok bool
			if c.KeyID, ok = value.Text(); !ok || c.KeyID == "" {
				return Claims{}, errKeyID
			}
		case "exp":
			c.ExpiresAt, err = date(value)
		case "nbf":
			c.NotBefore, err = date(value)
		case "downloadable":
			var ok bool
			if c.Downloadable, ok = value.Bool(); !ok {
				return Claims{}, errDownload
			}
		case "accessRules":
			c.AccessRules = value.Raw()
		}
		if err != nil {
			return Claims{}, err
		}
	}
	switch {
	case c.VideoID == "":
		return Claims{}, errSubject
	case c.ExpiresAt.IsZero():
		return Claims{}, errNoExpiry
	}
	return c, nil
}

// object reads a document that starts with its opening brace: a payload that
// is itself a token, or a string, is not one.
func object(doc []byte) (strictjson.Value, error) {
	if len(doc) == 0 || doc[0] != '{' {
		return strictjson.Value{}, strictjson.ErrSyntax
	}
	return strictjson.Parse(doc, MaxDepth)
}

// date reads a NumericDate (RFC 7519 section 2) narrowed to whole seconds from
// 1970 on: an integer, or a string of decimal digits as Cloudflare's own
// token endpoint writes them.
func date(v strictjson.Value) (time.Time, error) {
	digits := v.Raw()
	if text, ok := v.Plain(); ok {
		digits = text
	}
	if len(digits) == 0 {
		return time.Time{}, errDate
	}
	var seconds int64
	for _, c := range digits {
		if c < '0' || c > '9' {
			return time.Time{}, errDate
		}
		if seconds = seconds*10 + int64(c-'0'); seconds > maxDate {
			return time.Time{}, errDate
		}
	}
	return time.Unix(seconds, 0), nil
}
