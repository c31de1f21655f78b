package integration

import (
	"bytes"
	"cmp"
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

// referenceModel decides about requests as the documentation says that the gate does.
// It has none of the gate's code: it is slow, keeps nothing, and follows the order of
// the documents. Do not ask it about what they leave open.
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

// report reports whether a check only reports.
func (settings referenceSettings) report(check string) bool {
	return slices.Contains(settings.reports, check)
}

// restricted reports whether browsers learn which sites may read.
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

// referenceDecision is an answer, and the origin's URI; "" if the origin is not asked.
type referenceDecision struct {
	verdict
	uri string
}

// reasonStatus has the reasons that the model knows.
var reasonStatus = map[string]int{
	"path_invalid":   http.StatusBadRequest,
	"token_required": http.StatusUnauthorized, "token_malformed": http.StatusUnauthorized, "algorithm_not_allowed": http.StatusUnauthorized,
	"key_unknown": http.StatusUnauthorized, "signature_invalid": http.StatusUnauthorized, "token_expired": http.StatusUnauthorized,
	"token_not_yet_valid": http.StatusUnauthorized, "token_lifetime_exceeded": http.StatusUnauthorized, "rules_invalid": http.StatusUnauthorized,
	"rule_blocked": http.StatusForbidden, "origin_required": http.StatusForbidden, "origin_not_allowed": http.StatusForbidden,
	"download_not_allowed": http.StatusForbidden,
	"method_not_allowed":   http.StatusMethodNotAllowed,
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

// checkHeader returns an error if the header of an answer lets others read, keep or
// revalidate it than it should. The request was sent and answered at these times.
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
			return fmt.Errorf("%w: a manifest with the origin's validator %s", errReferenceHeader, etag)
		}
	}
	if !byToken && !restricted || settings.report("token") { // the documents do not say how long a bad token's answer is fresh
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
	errReferenceForm   = errors.New("not a token")
	errReferenceRule   = errors.New("not an access rule")

	referenceVideoID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	referenceSegment = regexp.MustCompile(`^([A-Za-z0-9._~!$&'()*+,=:@-]|%[0-9A-Fa-f]{2})+$`) // RFC 3986, without ";"
	referenceHidden  = regexp.MustCompile(`(?i)%(2f|5c|2e|3b|25|3f|23)`)
	referenceDate    = regexp.MustCompile(`^[0-9]+$`)
	referenceCountry = regexp.MustCompile(`^[A-Z]{2}$`)
)

// referencePath returns a path's first segment, and its suffix as it is and decoded.
func referencePath(path string) (first, suffix, decoded string, ok bool) {
	path, ok = strings.CutPrefix(path, "/")
	first, suffix, _ = strings.Cut(path, "/")
	if !ok || first == ".." || strings.Count(first, ".") != 2 && !referenceVideoID.MatchString(first) {
		return "", "", "", false
	}
	if suffix == "" {
		suffix = "iframe"
	}
	for segment := range strings.SplitSeq(strings.TrimSuffix(suffix, "/"), "/") {
		if segment == "." || segment == ".." || !referenceSegment.MatchString(segment) || referenceHidden.MatchString(segment) {
			return "", "", "", false
		}
	}
	decoded, err := url.PathUnescape(suffix)
	if err != nil || !utf8.ValidString(decoded) || strings.ContainsFunc(decoded, unicode.IsControl) {
		return "", "", "", false
	}
	return first, suffix, decoded, true
}

// referenceToken is the content of a token.
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

// verify returns the content of a token, or the reason to refuse it: its form, of
// which nothing more is known, then its key and signature, its rules and its dates.
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

// referenceParse reads a token, of which there is one form.
func referenceParse(compact string) (token referenceToken, err error) {
	parts := strings.Split(compact, ".")
	if len(compact) > 8192 || len(parts) != 3 {
		return token, errReferenceForm
	}
	var decoded [3][]byte
	for i, part := range parts {
		if decoded[i], err = base64.RawURLEncoding.DecodeString(part); err != nil || base64.RawURLEncoding.EncodeToString(decoded[i]) != part {
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
	for name, date := range map[string]*time.Time{"exp": &token.expires, "nbf": &token.begins} {
		value, there := claims[name]
		digits := fmt.Sprint(value) // of a number or a string
		seconds, err := strconv.ParseInt(digits, 10, 64)
		if (there || name == "exp") && (err != nil || !referenceDate.MatchString(digits)) {
			return errReferenceForm
		}
		if there {
			*date = time.Unix(seconds, 0)
		}
	}
	token.downloadable, token.accessRules = claims["downloadable"] == true, claims["accessRules"]
	return nil
}

// referenceObject parses one JSON object, without duplicate members.
func referenceObject(document []byte) (map[string]any, error) {
	decoder := json.NewDecoder(bytes.NewReader(document))
	decoder.UseNumber()
	value, err := referenceValue(decoder)
	object, ok := value.(map[string]any)
	if err != nil || !ok || !utf8.Valid(document) {
		return nil, errReferenceForm
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errReferenceForm
	}
	return object, nil
}

func referenceValue(decoder *json.Decoder) (any, error) {
	token, err := decoder.Token()
	delimiter, ok := token.(json.Delim)
	if err != nil || !ok {
		return token, err
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
				return nil, errReferenceForm
			}
		}
		value, err := referenceValue(decoder)
		if err != nil {
			return nil, err
		}
		object[name], array = value, append(array, value)
	}
	if _, err := decoder.Token(); err != nil || delimiter == '{' {
		return object, err
	}
	return array, nil
}

// referenceRule is one access rule.
type referenceRule struct {
	allow     bool
	any       bool // matches everybody
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
			rule.any = true
		case "ip.src":
			err = rule.add(object["ip"], rule.addPrefix)
		case "ip.geoip.country":
			err = rule.add(object["country"], rule.addCountry)
		default:
			err = errReferenceRule
		}
		if err != nil {
			return nil, err
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

// add adds every entry of a list.
func (rule *referenceRule) add(value any, one func(entry string) bool) error {
	list, ok := value.([]any)
	for _, entry := range list {
		text, _ := entry.(string)
		ok = ok && one(text)
	}
	if !ok {
		return errReferenceRule
	}
	return nil
}

func (rule *referenceRule) addPrefix(entry string) bool {
	if address, err := netip.ParseAddr(entry); err == nil {
		entry = fmt.Sprintf("%s/%d", address, address.BitLen())
	}
	prefix, err := netip.ParsePrefix(entry)
	rule.prefixes = append(rule.prefixes, prefix)
	return err == nil
}

func (rule *referenceRule) addCountry(entry string) bool {
	rule.countries = append(rule.countries, entry)
	return referenceCountry.MatchString(entry)
}

// blocked reports whether the first rule that matches blocks a client.
func (m *referenceModel) blocked(rules []referenceRule, client netip.Addr) bool {
	client = client.Unmap()
	country := ""
	for network, code := range m.countries {
		if network.Contains(client) {
			country = code
		}
	}
	for _, rule := range rules {
		if rule.any || slices.ContainsFunc(rule.prefixes, func(p netip.Prefix) bool { return p.Contains(client) }) ||
			country != "" && slices.Contains(rule.countries, country) {
			return !rule.allow
		}
	}
	return false
}

// checkOrigin returns the reason to refuse a request for the site that it comes from;
// "" if there is none.
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
	own := !iframe && source.Scheme+"://"+source.Host == m.origin
	if own || slices.ContainsFunc(settings.allowed, func(pattern string) bool { return referenceCovers(pattern, source) }) {
		return ""
	}
	return "origin_not_allowed"
}

// referenceCovers reports whether a pattern, [*.]host[:port] or *, covers an origin.
func referenceCovers(pattern string, source *url.URL) bool {
	defaultPort := map[string]string{"http": "80", "https": "443"}[source.Scheme]
	host, wantPort, _ := strings.Cut(pattern, ":")
	parent, wild := strings.CutPrefix(host, "*.")
	switch name := source.Hostname(); {
	case pattern == "*":
		return true
	case cmp.Or(source.Port(), defaultPort) != cmp.Or(wantPort, defaultPort):
		return false
	case wild:
		return name == parent || strings.HasSuffix(name, "."+parent)
	default:
		return name == host
	}
}
