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

// Parsed is a token whose form has been checked and whose signature has not.
// Nothing that it says is to be trusted before Verify.
type Parsed struct {
	claims    Claims
	signed    string
	signature []byte
}

// Parse checks the form of a compact token: everything that can be told
// without a key. Its errors wrap ErrMalformed or ErrAlgorithm.
func Parse(compact string) (Parsed, error) {
	header, payload, signature, err := split(compact)
	if err != nil {
		return Parsed{}, err
	}
	headerKeyID, err := parseHeader(header)
	if err != nil {
		return Parsed{}, err
	}
	p := Parsed{signature: signature, signed: compact[:strings.LastIndexByte(compact, '.')]}
	if p.claims, err = parsePayload(payload); err != nil {
		return Parsed{}, err
	}
	switch {
	case p.claims.KeyID == "":
		p.claims.KeyID = string(headerKeyID)
	case headerKeyID != nil && string(headerKeyID) != p.claims.KeyID:
		return Parsed{}, errKeyIDs
	}
	return p, nil
}

// HeaderKeyID returns the `kid` in the header of a compact token, none if it has
// none there, after the cheapest of the checks that Parse makes: length,
// segments, alphabet, header. A verifier that asks it first refuses tokens of
// unknown keys at little cost. The header is decoded into scratch, if it has
// room, and the result may be a part of that. Errors wrap ErrMalformed or
// ErrAlgorithm.
func HeaderKeyID(compact string, scratch []byte) (keyID []byte, err error) {
	first, _, err := segments(compact)
	if err != nil {
		return nil, err
	}
	if need := strict.DecodedLen(first); need > len(scratch) {
		scratch = make([]byte, need)
	}
	n, err := strict.Decode(scratch, []byte(compact[:first]))
	if err != nil {
		return nil, errAlphabet
	}
	return parseHeader(scratch[:n])
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

// segments checks length and alphabet of a compact token and returns where its
// two dots are.
func segments(compact string) (first, last int, err error) {
	if len(compact) > MaxLength {
		return 0, 0, errLength
	}
	first = strings.IndexByte(compact, '.')
	last = strings.LastIndexByte(compact, '.')
	if first < 0 || first == last {
		return 0, 0, errSegments
	}
	for i := range len(compact) {
		switch {
		case base64url[compact[i]] || i == first || i == last:
		case compact[i] == '.':
			return 0, 0, errSegments
		default:
			// The decoder skips line breaks, so they must not get there.
			return 0, 0, errAlphabet
		}
	}
	return first, last, nil
}

// split decodes the three segments of a compact token. An empty signature is
// left for the algorithm to refuse.
func split(compact string) (header, payload, signature []byte, err error) {
	first, last, err := segments(compact)
	if err != nil {
		return nil, nil, nil, err
	}
	decoded := make([]byte, 0, strict.DecodedLen(len(compact)))
	for _, segment := range []struct {
		text string
		into *[]byte
	}{{compact[:first], &header}, {compact[first+1 : last], &payload}, {compact[last+1:], &signature}} {
		start := len(decoded)
		if decoded, err = strict.AppendDecode(decoded, []byte(segment.text)); err != nil {
			return nil, nil, nil, errAlphabet
		}
		*segment.into = decoded[start:len(decoded):len(decoded)]
	}
	return header, payload, signature, nil
}

// parseHeader checks the JOSE header and returns its `kid`, nil for none. The
// members that other verifiers act on (`jwk`, `jku`, `x5c`, `crit`, `b64`, …)
// are refused by not being on the list.
func parseHeader(header []byte) (keyID []byte, err error) {
	members, err := object(header)
	if err != nil || header[len(header)-1] != '}' {
		return nil, errHeader
	}
	var alg strictjson.Value
	var unknown, badType, badKeyID bool
	for name, value := range members.Members() {
		switch string(name) {
		case "alg":
			alg = value
		case "kid":
			var ok bool
			keyID, ok = value.Content()
			badKeyID = !ok || len(keyID) == 0
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
		return nil, errAlgorithm
	case unknown:
		return nil, errMember
	case badType:
		return nil, errType
	case badKeyID:
		return nil, errKeyID
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
