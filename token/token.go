// Package token parses, verifies and signs the tokens of playback URLs.
//
// A playback URL has such a token in the place of the video id. The token is a
// JSON Web Token (RFC 7519) in the compact serialization of RFC 7515, signed
// with RS256 (RFC 7518 section 3.3).
//
// # Signing
//
// A back end that signs its own tokens loads a key with [ParseSigningKey] and
// calls [Sign]. Its tests can call [Verify].
//
// # Verifying
//
// [Verify] checks a token completely. A server that strangers can flood with
// tokens calls the steps one by one and stops at the first error, so that it
// does little work for most of them: [ParseHeader], a look-up of
// [Header.KeyID], [Header.ParsePayload], [Parsed.Verify], [Claims.Check].
//
// # One spelling
//
// General JWT libraries accept many spellings of the same token. This package
// accepts one: at most [MaxLength] bytes, canonical base64url without padding,
// a header with the members `alg`, `kid` and `typ` only, and JSON that no two
// readers can read differently. So a cache or a revocation list may compare
// tokens byte by byte.
//
// # Limits
//
// The package does not evaluate access rules, does not fetch keys and knows
// nothing of HTTP.
package token

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
)

const (
	// MaxLength is the maximum length of a token in bytes.
	MaxLength = 8192

	// MaxDepth is the maximum nesting of arrays and objects in a payload. Access
	// rules need four levels.
	MaxDepth = 16

	// MaxIdentifier is the maximum length of the claims that name a token or a viewer,
	// in bytes: that of a long email address.
	MaxIdentifier = 256

	// maxDate is the largest number that is read as a date: the largest integer
	// up to which every JSON reader is exact (RFC 8259 section 6).
	maxDate = 1 << 53

	// maxExpiry is the last second of the year 9999. A later `exp` is a mistake,
	// most often milliseconds, and would make a token last for ever.
	maxExpiry = 253402300799

	maxVideoID = 64
)

// Claims are the claims of a token that this package knows. It ignores all other
// claims, except those whose name is nearly that of a claim that a gate reads:
// they make the token malformed.
type Claims struct {
	// VideoID is the `sub` claim: the video that the token opens. Required. See
	// [ValidVideoID].
	VideoID string

	// KeyID is the `kid` of the key that signed the token. Sign takes it from
	// the key and ignores this field.
	KeyID string

	// ExpiresAt is the `exp` claim in whole seconds. The token is invalid from
	// that second on. Required.
	ExpiresAt time.Time

	// NotBefore is the `nbf` claim in whole seconds. Zero if there is no such
	// claim.
	NotBefore time.Time

	// Downloadable is the `downloadable` claim. Default: false.
	Downloadable bool

	// Original is the claim `original` in the object `flags`: the viewer gets the video
	// as it was uploaded. A gate changes no media, so it serves the same files with and
	// without it. Default: false.
	Original bool

	// Audience is the `aud` claim: the programs for which the token is. In the
	// payload, it is a string or an array of strings (RFC 7519 section 4.1.3).
	// Nil if there is no such claim, or one of another type.
	Audience []string

	// Issuer is the `iss` claim, "" if there is none or if it is not a string.
	Issuer string

	// ID is the `jti` claim: 1 to 256 bytes that name the token, so that it can be
	// revoked. "" if there is no such claim; Sign then makes one.
	ID string

	// IssuedAt is the `iat` claim in whole seconds. Zero if there is no such claim; Sign
	// then writes the present time.
	IssuedAt time.Time

	// Viewer is the claim that names the viewer: 1 to 256 bytes. It is `uid` unless the
	// verifier has another [Policy.ViewerClaim]. "" if there is no such claim.
	Viewer string

	// ViewerClaim is the name of the claim that Sign writes Viewer to. Default: `uid`.
	// Parse leaves it empty.
	ViewerClaim string

	// SessionLimit is the `climit` claim: how many playback sessions the viewer may have
	// at a time, 1 to 2^31-1. 0 if there is no such claim.
	SessionLimit int

	// StartBy is the `startBy` claim in whole seconds: from then on no playback session
	// begins, and those that have begun go on. Zero if there is no such claim.
	StartBy time.Time

	// AccessRules is the `accessRules` claim, byte by byte as in the payload.
	// It is a list of [AccessRule] in JSON, but this package does not check
	// that. Nil if there is no such claim.
	AccessRules json.RawMessage
}

// AccessRule is one element of the `accessRules` claim, for signers. The first
// rule that matches a viewer decides. A viewer that matches no rule is allowed,
// so a list of "allow" rules needs a last rule of the type "any" with the action
// "block".
type AccessRule struct {
	// Type is "any", "ip.src", "ip.geoip.country", "ip.geoip.asnum" or "ip.anonymous".
	Type string `json:"type"`
	// Action is "allow" or "block".
	Action string `json:"action"`
	// IP lists the addresses and CIDRs of an "ip.src" rule.
	IP []string `json:"ip,omitempty"`
	// Country lists the ISO 3166-1 alpha-2 codes of an "ip.geoip.country" rule.
	Country []string `json:"country,omitempty"`
	// ASN lists the numbers of autonomous systems of an "ip.geoip.asnum" rule.
	ASN []uint32 `json:"asn,omitempty"`
	// Kinds are those of an "ip.anonymous" rule: "vpn", "hosting", "public_proxy",
	// "residential_proxy" or "tor". nil is any kind; an empty list is invalid.
	Kinds []string `json:"kinds,omitzero"`
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
func Parse(compact string) (Parsed, error) { return Policy{}.Parse(compact) }

// Parse is the function Parse for tokens with another ViewerClaim. Nothing else of the
// policy counts.
func (p Policy) Parse(compact string) (Parsed, error) {
	header, err := ParseHeader(compact)
	if err != nil {
		return Parsed{}, err
	}
	return header.ParsePayload(p.ViewerClaim)
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
	header, _, _ := strings.Cut(h.signed, ".")
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
func (h Header) ParsePayload(viewer ViewerClaim) (Parsed, error) {
	_, encoded, _ := strings.Cut(h.signed, ".")
	payload, err := strict.DecodeString(encoded)
	if err != nil {
		return Parsed{}, errAlphabet
	}
	signature, err := strict.DecodeString(h.signature)
	if err != nil {
		return Parsed{}, errAlphabet
	}
	claims, err := parsePayload(payload, viewer)
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

// Unverified returns the claims of a token before its signature is checked. Use
// them to find the key or to show them, and for nothing else.
func (p Parsed) Unverified() Claims { return p.claims }

// Documents returns the two JSON documents of a token, byte by byte, to show
// them.
func (p Parsed) Documents() (header, payload string) {
	encodedHeader, encodedPayload, _ := strings.Cut(p.signed, ".")
	decodedHeader, _ := strict.DecodeString(encodedHeader) // Parse has checked both
	decodedPayload, _ := strict.DecodeString(encodedPayload)
	return string(decodedHeader), string(decodedPayload)
}

// ValidVideoID reports whether id is a video id: 1 to 64 characters of A-Z, a-z,
// 0-9, "_" and "-". A video id is safe as a segment of a path and as a storage
// key.
func ValidVideoID(id string) bool {
	return id != "" && len(id) <= maxVideoID &&
		!strings.ContainsFunc(id, func(r rune) bool { return r >= utf8.RuneSelf || !base64url[r] })
}

// base64url is the alphabet of RFC 4648 section 5. Video ids use the same one.
var base64url = func() (set [256]bool) {
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
		set[c] = true
	}
	return set
}()

// strict decodes base64url. It refuses unused bits that are set in the last
// character, so no two last characters decode to the same bytes.
var strict = base64.RawURLEncoding.Strict()

// parseHeader checks the JOSE header and returns its `kid`, or "" for none. The
// list of members is closed: it refuses those that make other verifiers fetch a
// key or read the token differently (`jwk`, `jku`, `x5c`, `crit`, `b64`, …).
func parseHeader(header []byte) (keyID string, err error) {
	members, err := object(header)
	if err != nil || header[len(header)-1] != '}' {
		return "", errHeader
	}
	var alg []byte
	for name, value := range members.Members() {
		switch string(name) {
		case "alg":
			alg, _ = value.Plain()
		case "kid":
			if keyID, _ = value.Text(); keyID == "" {
				err = errKeyID
			}
		case "typ":
			if text, _ := value.Plain(); string(text) != "JWT" {
				err = errType
			}
		default:
			err = errMember
		}
	}
	// The algorithm comes first: for an unsigned token, it is the error to report.
	if string(alg) != "RS256" {
		return "", errAlgorithm
	}
	return keyID, err
}

func parsePayload(payload []byte, viewer ViewerClaim) (c Claims, err error) {
	members, err := object(payload)
	if err != nil {
		return Claims{}, errPayload
	}
	for name, value := range members.Members() {
		if string(name) == viewer.Name() {
			c.Viewer, err = identifier(value)
		} else {
			err = c.parseClaim(name, value, viewer)
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

// parseClaim reads a claim of any name but that of the viewer's.
func (c *Claims) parseClaim(name []byte, value strictjson.Value, viewer ViewerClaim) (err error) {
	switch string(name) {
	case "sub":
		// No escapes: the signed bytes themselves must be the id.
		text, _ := value.Plain()
		if c.VideoID = string(text); !ValidVideoID(c.VideoID) {
			err = errSubject
		}
	case "kid":
		if c.KeyID, _ = value.Text(); c.KeyID == "" {
			err = errKeyID
		}
	case "exp":
		c.ExpiresAt, err = date(value)
	case "nbf":
		c.NotBefore, err = date(value)
	case "iat":
		c.IssuedAt, err = date(value)
	case "startBy":
		c.StartBy, err = date(value)
	case "jti":
		c.ID, err = identifier(value)
	case "climit":
		var limit uint64
		if limit, err = strconv.ParseUint(string(value.Raw()), 10, 31); err != nil || limit == 0 {
			err = errLimit
		}
		c.SessionLimit = int(limit)
	case "downloadable":
		var ok bool
		if c.Downloadable, ok = value.Bool(); !ok {
			err = errDownload
		}
	case "accessRules":
		c.AccessRules = value.Raw()
	case "aud":
		c.Audience = audience(value)
	case "iss":
		c.Issuer, _ = value.Text()
	case "flags":
		c.Original, err = parseFlags(value)
	default:
		err = checkSpelling(name, viewer.spellings())
	}
	return err
}

// identifier reads the name of a token or a viewer.
func identifier(v strictjson.Value) (string, error) {
	text, _ := v.Text()
	if text == "" || len(text) > MaxIdentifier {
		return "", errIdentifier
	}
	return text, nil
}

// parseFlags reads the claim `flags`. Another claim of this name has no such member.
func parseFlags(flags strictjson.Value) (original bool, err error) {
	for flag, value := range flags.Members() {
		if string(flag) != "original" {
			err = cmp.Or(err, checkSpelling(flag, flagSpellings))
			continue
		}
		var ok bool
		if original, ok = value.Bool(); !ok {
			return false, errOriginal
		}
	}
	return original, err
}

// audience reads a string or an array of strings. Any other value is no audience:
// it matters only to a policy that asks for one, which then refuses the token.
func audience(v strictjson.Value) (audience []string) {
	if text, ok := v.Text(); ok {
		return []string{text}
	}
	for element := range v.Elements() {
		text, ok := element.Text()
		if !ok {
			return nil
		}
		audience = append(audience, text)
	}
	return audience
}

// object reads a document that starts with the brace of an object.
func object(doc []byte) (strictjson.Value, error) {
	if len(doc) == 0 || doc[0] != '{' {
		return strictjson.Value{}, strictjson.ErrSyntax
	}
	return strictjson.Parse(doc, MaxDepth)
}

// date reads a NumericDate (RFC 7519 section 2), but only whole seconds from 1970
// on. A string of decimal digits is accepted too, because Cloudflare's token
// endpoint writes dates so.
func date(v strictjson.Value) (time.Time, error) {
	digits := v.Raw()
	if text, ok := v.Plain(); ok {
		digits = text
	}
	seconds, err := strconv.ParseUint(string(digits), 10, 64)
	if err != nil || seconds > maxDate {
		return time.Time{}, errDate
	}
	return time.Unix(int64(seconds), 0), nil
}
