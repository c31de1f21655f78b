package integration

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// referenceModel decides about requests as a gate has to. It is a second
// reading of the documentation, made without the gate's code and with none of
// it: slow, without a memory, and in the order in which the documents say
// things. Where they leave something open, it has no opinion, and nobody should
// ask it.
type referenceModel struct {
	origin      string                                       // of the site itself
	originPath  string                                       // with {video}
	keys        func(id string, at time.Time) *rsa.PublicKey // nil if there is none by then
	leeway      time.Duration
	maxLifetime time.Duration
	videos      map[string]referenceSettings
	download    *regexp.Regexp // what needs `downloadable`
	countries   map[netip.Prefix]string
}

// referenceSettings are those of a video. The zero value is the default.
type referenceSettings struct {
	open         bool // plays without a token
	allowed      []string
	allowMissing bool
	reports      []string // checks that refuse nothing
}

// report tells whether a check only reports.
func (settings referenceSettings) report(check string) bool {
	return slices.Contains(settings.reports, check)
}

// restricted tells whether browsers are told which sites may read.
func (settings referenceSettings) restricted() bool {
	return len(settings.allowed) > 0 && !settings.report("origins")
}

// referenceRequest is what a decision depends on.
type referenceRequest struct {
	method string
	target string // path and query as they are on the wire
	header http.Header
	viewer netip.Addr
}

// referenceDecision is an answer, and what the origin is asked for, "" if it is
// not.
type referenceDecision struct {
	verdict
	uri string
}

var reasonStatus = map[string]int{
	"path_invalid":   http.StatusBadRequest,
	"token_required": http.StatusUnauthorized, "token_malformed": http.StatusUnauthorized, "algorithm_not_allowed": http.StatusUnauthorized,
	"key_unknown": http.StatusUnauthorized, "signature_invalid": http.StatusUnauthorized, "token_expired": http.StatusUnauthorized,
	"token_not_yet_valid": http.StatusUnauthorized, "token_lifetime_exceeded": http.StatusUnauthorized, "rules_invalid": http.StatusUnauthorized,
	"rule_blocked": http.StatusForbidden, "origin_required": http.StatusForbidden, "origin_not_allowed": http.StatusForbidden,
	"download_not_allowed": http.StatusForbidden,
	"method_not_allowed":   http.StatusMethodNotAllowed,
	"client_ip_unknown":    http.StatusForbidden,
	"too_early":            http.StatusTooEarly,
}

// decide is what the gate must answer to a request at a time.
func (m *referenceModel) decide(r referenceRequest, at time.Time) referenceDecision {
	refused := func(reason string) referenceDecision {
		return referenceDecision{verdict: verdict{reasonStatus[reason], reason}}
	}
	if !slices.Contains([]string{http.MethodGet, http.MethodHead, http.MethodOptions}, r.method) {
		return refused("method_not_allowed")
	}
	path, query, hasQuery := strings.Cut(r.target, "?")
	first, suffix, decoded, ok := referencePath(path)
	if !ok {
		return refused("path_invalid")
	}
	if r.method == http.MethodOptions {
		return referenceDecision{verdict: verdict{Status: http.StatusNoContent}}
	}
	token := referenceToken{video: first}
	if strings.Contains(first, ".") {
		var reason string
		if token, reason = m.verify(first, at); reason != "" && !m.videos[token.video].report("token") {
			return refused(reason)
		}
	} else if !m.videos[first].open && !m.videos[first].report("token") {
		return refused("token_required")
	}
	settings := m.videos[token.video]
	if reason := m.checkOrigin(r.header, settings, decoded == "iframe"); reason != "" && !settings.report("origins") {
		return refused(reason)
	}
	if m.blocked(token.rules, r.viewer) && !settings.report("rules") {
		return refused("rule_blocked")
	}
	if m.download.MatchString(decoded) && !token.downloadable && !settings.report("downloads") {
		return refused("download_not_allowed")
	}
	uri := strings.ReplaceAll(m.originPath, "{video}", token.video) + "/" + suffix
	if hasQuery {
		uri += "?" + query
	}
	return referenceDecision{verdict{Status: http.StatusOK}, uri}
}

// checkHeader returns what is wrong with the header of an answer, to a request
// that was sent and answered at these times: who may read, keep and revalidate it.
func (m *referenceModel) checkHeader(r referenceRequest, v verdict, header http.Header, sent, received time.Time) error {
	cors, caching := header["Access-Control-Allow-Origin"], strings.Join(header["Cache-Control"], ",")
	if len(header["Access-Control-Allow-Credentials"]) > 0 || len(cors) > 1 {
		return fmt.Errorf("%w: what the origin says of access is left: %v", errReferenceHeader, cors)
	}
	if v.Reason != "" && (caching != "no-store" || len(cors) == 0) {
		return fmt.Errorf("%w: a refusal has Cache-Control %q and access for %v", errReferenceHeader, caching, cors)
	}
	if v.Status != http.StatusOK {
		return nil
	}
	path, _, _ := strings.Cut(r.target, "?")
	first, _, decoded, _ := referencePath(path)
	token, byToken := referenceToken{video: first}, strings.Contains(first, ".")
	if byToken {
		token, _ = m.verify(first, sent)
	}
	settings := m.videos[token.video]
	restricted := settings.restricted()
	want := r.header["Origin"]
	if !restricted {
		want = []string{"*"}
	}
	if !slices.Equal(cors, want) || restricted && !slices.Contains(header["Vary"], "Origin") {
		return fmt.Errorf("%w: access for %v, want %v, varying by %v", errReferenceHeader, cors, want, header["Vary"])
	}
	if name := strings.ToLower(strings.TrimSuffix(decoded, "/")); strings.HasSuffix(name, ".m3u8") || strings.HasSuffix(name, ".mpd") {
		if etag := header.Get("Etag"); etag != "" {
			return fmt.Errorf("%w: a manifest has the origin's validator %s", errReferenceHeader, etag)
		}
	}
	if !byToken && !restricted || settings.report("token") { // how long a bad token's response is fresh, nothing says
		return nil
	}
	age, err := strconv.Atoi(strings.TrimPrefix(caching, "private, max-age="))
	if err != nil || header.Get("Surrogate-Control") != "" {
		return fmt.Errorf("%w: Cache-Control %q with Surrogate-Control %q", errReferenceHeader, caching, header.Get("Surrogate-Control"))
	}
	const year = 31536000 // which is what the origin says
	least, most := year, year
	if byToken {
		least, most = int(token.expires.Sub(received).Seconds())-1, int(token.expires.Sub(sent).Seconds())
	}
	if age < least || age > most {
		return fmt.Errorf("%w: it is fresh for %d seconds, want %d to %d", errReferenceHeader, age, least, most)
	}
	return nil
}

var (
	errReferenceHeader = errors.New("wrong header")

	referenceVideoID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	// pchar of RFC 3986, without ";".
	referenceSegment = regexp.MustCompile(`^([A-Za-z0-9._~!$&'()*+,=:@-]|%[0-9A-Fa-f]{2})+$`)
	referenceEscape  = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)
)

// referencePath takes a path apart: what stands in the first segment, and the
// suffix as it is and decoded.
func referencePath(path string) (first, suffix, decoded string, ok bool) {
	path, ok = strings.CutPrefix(path, "/")
	first, suffix, _ = strings.Cut(path, "/")
	if !ok || first == ".." || strings.Count(first, ".") != 2 && !referenceVideoID.MatchString(first) {
		return "", "", "", false
	}
	if suffix == "" {
		suffix = "iframe"
	}
	segments := strings.Split(suffix, "/")
	if last := len(segments) - 1; last > 0 && segments[last] == "" {
		segments = segments[:last]
	}
	for _, segment := range segments {
		if segment == "." || segment == ".." || !referenceSegment.MatchString(segment) {
			return "", "", "", false
		}
		for _, escape := range referenceEscape.FindAllString(segment, -1) {
			if b, err := strconv.ParseUint(escape[1:], 16, 8); err != nil || strings.IndexByte(`/\.;%?#`, byte(b)) >= 0 {
				return "", "", "", false
			}
		}
	}
	decoded, err := url.PathUnescape(suffix)
	if err != nil || !utf8.ValidString(decoded) || strings.ContainsFunc(decoded, unicode.IsControl) {
		return "", "", "", false
	}
	return first, suffix, decoded, true
}

// referenceToken is what a token says.
type referenceToken struct {
	algorithm    any
	keyID        any
	video        string
	expires      time.Time
	begins       time.Time // zero if there is no such claim
	accessRules  any       // nil if there are none
	rules        []referenceRule
	downloadable bool
	signed       string
	signature    []byte
}

// verify returns what a token says, or why it is refused: first for its form,
// after which nothing is known of it, then for its key and signature, its rules
// and its dates.
func (m *referenceModel) verify(compact string, at time.Time) (token referenceToken, reason string) {
	token, err := referenceParse(compact)
	if err != nil {
		return referenceToken{}, "token_malformed"
	}
	if token.algorithm != "RS256" {
		return referenceToken{}, "algorithm_not_allowed"
	}
	key := m.keys(fmt.Sprint(token.keyID), at)
	if key == nil {
		return token, "key_unknown"
	}
	digest := sha256.Sum256([]byte(token.signed))
	if rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], token.signature) != nil {
		return token, "signature_invalid"
	}
	if token.accessRules != nil {
		if token.rules, err = referenceRules(token.accessRules); err != nil {
			return token, "rules_invalid"
		}
	}
	switch {
	case !at.Before(token.expires):
		return token, "token_expired"
	case token.begins.After(at.Add(m.leeway)):
		return token, "token_not_yet_valid"
	case token.expires.After(at.Add(m.maxLifetime)):
		return token, "token_lifetime_exceeded"
	}
	return token, ""
}

// referenceParse reads a token of the one form.
func referenceParse(compact string) (token referenceToken, err error) {
	parts := strings.Split(compact, ".")
	if len(compact) > 8192 || len(parts) != 3 {
		return token, errReferenceForm
	}
	var decoded [3][]byte
	for i, part := range parts {
		if decoded[i], err = base64.RawURLEncoding.DecodeString(part); err != nil ||
			base64.RawURLEncoding.EncodeToString(decoded[i]) != part {
			return token, errReferenceForm
		}
	}
	token.signed, token.signature = parts[0]+"."+parts[1], decoded[2]
	header, err := referenceObject(decoded[0])
	if err != nil {
		return token, err
	}
	for name, value := range header {
		if name != "alg" && name != "kid" && (name != "typ" || value != "JWT") {
			return token, errReferenceForm
		}
	}
	token.algorithm, token.keyID = header["alg"], header["kid"]
	claims, err := referenceObject(decoded[1])
	if err != nil {
		return token, err
	}
	return token, token.claim(claims)
}

// claim reads the claims.
func (token *referenceToken) claim(claims map[string]any) (err error) {
	if id, there := claims["kid"]; there {
		if token.keyID != nil && token.keyID != id {
			return errReferenceForm
		}
		token.keyID = id
	}
	token.video, _ = claims["sub"].(string)
	if !referenceVideoID.MatchString(token.video) {
		return errReferenceForm
	}
	if token.expires, err = referenceDate(claims["exp"]); err != nil {
		return err
	}
	if date, there := claims["nbf"]; there {
		if token.begins, err = referenceDate(date); err != nil {
			return err
		}
	}
	token.downloadable = claims["downloadable"] == true
	token.accessRules = claims["accessRules"]
	return nil
}

var (
	errReferenceForm = errors.New("not a token")
	errReferenceJSON = errors.New("not one JSON object without duplicate members")
	errReferenceDate = errors.New("not a date")
	errReferenceRule = errors.New("not an access rule")
)

// referenceObject parses one JSON object, in which no member stands twice.
func referenceObject(document []byte) (map[string]any, error) {
	if !utf8.Valid(document) {
		return nil, errReferenceJSON
	}
	decoder := json.NewDecoder(bytes.NewReader(document))
	decoder.UseNumber()
	value, err := referenceValue(decoder)
	if err != nil {
		return nil, err
	}
	object, ok := value.(map[string]any)
	if _, err := decoder.Token(); !ok || !errors.Is(err, io.EOF) {
		return nil, errReferenceJSON
	}
	return object, nil
}

func referenceValue(decoder *json.Decoder) (any, error) {
	token, err := decoder.Token()
	if err != nil {
		return nil, err
	}
	delimiter, ok := token.(json.Delim)
	if !ok {
		return token, nil
	}
	object, array := make(map[string]any), []any{}
	for decoder.More() {
		name := ""
		if delimiter == '{' {
			key, err := decoder.Token()
			if err != nil {
				return nil, err
			}
			name, _ = key.(string)
			if _, twice := object[name]; twice {
				return nil, errReferenceJSON
			}
		}
		value, err := referenceValue(decoder)
		if err != nil {
			return nil, err
		}
		object[name], array = value, append(array, value)
	}
	if _, err := decoder.Token(); err != nil {
		return nil, err
	}
	if delimiter == '{' {
		return object, nil
	}
	return array, nil
}

// referenceDate reads Unix seconds, an integer or a string of digits.
func referenceDate(value any) (time.Time, error) {
	var digits string
	switch value := value.(type) {
	case json.Number:
		digits = value.String()
	case string:
		digits = value
	}
	if !regexp.MustCompile(`^[0-9]+$`).MatchString(digits) {
		return time.Time{}, errReferenceDate
	}
	seconds, err := strconv.ParseInt(digits, 10, 64)
	return time.Unix(seconds, 0), err
}

// referenceRule is one access rule.
type referenceRule struct {
	kind      string
	allow     bool
	prefixes  []netip.Prefix
	countries []string
}

func referenceRules(value any) (rules []referenceRule, err error) {
	list, ok := value.([]any)
	if !ok || len(list) > 64 {
		return nil, errReferenceRule
	}
	for _, entry := range list {
		object, ok := entry.(map[string]any)
		if !ok || object["action"] != "allow" && object["action"] != "block" {
			return nil, errReferenceRule
		}
		rule := referenceRule{allow: object["action"] == "allow"}
		switch object["type"] {
		case "any":
			rule.kind = "any"
		case "ip.src":
			rule.kind = "ip.src"
			rule.prefixes, err = referencePrefixes(object["ip"])
		case "ip.geoip.country":
			rule.kind = "ip.geoip.country"
			rule.countries, err = referenceCountries(object["country"])
		default:
			return nil, errReferenceRule
		}
		if err != nil {
			return nil, err
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

func referencePrefixes(value any) (prefixes []netip.Prefix, err error) {
	list, ok := value.([]any)
	if !ok {
		return nil, errReferenceRule
	}
	for _, entry := range list {
		text, _ := entry.(string)
		if address, err := netip.ParseAddr(text); err == nil {
			text = fmt.Sprintf("%s/%d", address, address.BitLen())
		}
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, errReferenceRule
		}
		prefixes = append(prefixes, prefix)
	}
	return prefixes, nil
}

func referenceCountries(value any) (countries []string, err error) {
	list, ok := value.([]any)
	if !ok {
		return nil, errReferenceRule
	}
	for _, entry := range list {
		code, _ := entry.(string)
		if !regexp.MustCompile(`^[A-Z]{2}$`).MatchString(code) {
			return nil, errReferenceRule
		}
		countries = append(countries, code)
	}
	return countries, nil
}

// blocked tells whether the first rule that matches blocks a viewer.
func (m *referenceModel) blocked(rules []referenceRule, viewer netip.Addr) bool {
	viewer = viewer.Unmap()
	country := ""
	for network, code := range m.countries {
		if network.Contains(viewer) {
			country = code
		}
	}
	for _, rule := range rules {
		matches := rule.kind == "any" ||
			slices.ContainsFunc(rule.prefixes, func(p netip.Prefix) bool { return p.Contains(viewer) }) ||
			country != "" && slices.Contains(rule.countries, country)
		if matches {
			return !rule.allow
		}
	}
	return false
}

// checkOrigin returns why a request is refused for the site that it comes from,
// "" if it is not.
func (m *referenceModel) checkOrigin(header http.Header, settings referenceSettings, iframe bool) (reason string) {
	if len(settings.allowed) == 0 {
		return ""
	}
	sources := header["Origin"]
	if len(sources) == 0 {
		sources = header["Referer"]
	}
	switch {
	case len(sources) > 1:
		return "origin_not_allowed"
	case len(sources) == 0 && (settings.allowMissing || iframe && header.Get("Sec-Fetch-Dest") == "iframe"):
		return ""
	case len(sources) == 0:
		return "origin_required"
	}
	source, err := url.Parse(sources[0])
	if err != nil || source.Scheme != "http" && source.Scheme != "https" || source.Hostname() == "" {
		return "origin_not_allowed"
	}
	if !iframe && source.Scheme+"://"+source.Host == m.origin {
		return ""
	}
	for _, pattern := range settings.allowed {
		if referenceCovers(pattern, source) {
			return ""
		}
	}
	return "origin_not_allowed"
}

// referenceCovers tells whether a pattern, [*.]host[:port] or *, covers an
// origin.
func referenceCovers(pattern string, source *url.URL) bool {
	defaultPort := map[string]string{"http": "80", "https": "443"}[source.Scheme]
	port := source.Port()
	if port == "" {
		port = defaultPort
	}
	host, wantPort, hasPort := strings.Cut(pattern, ":")
	if !hasPort {
		wantPort = defaultPort
	}
	if pattern == "*" {
		return true
	}
	if port != wantPort {
		return false
	}
	if parent, wild := strings.CutPrefix(host, "*."); wild {
		return source.Hostname() == parent || strings.HasSuffix(source.Hostname(), "."+parent)
	}
	return source.Hostname() == host
}
