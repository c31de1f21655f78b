// Package accessrules decides by access rules whether a viewer may play. The rules of
// tokens and those of operators have the same form.
package accessrules

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/text/language"

	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// maxRules is how many rules a list may have.
const maxRules = 64

// List is a compiled list of access rules, nil for none. It is immutable.
type List []Rule

// Rule is one compiled rule.
type Rule struct {
	kind      kind
	block     bool
	prefixes  []netip.Prefix     // of a rule by address
	countries []geo.CountryCode  // of a rule by country
	asns      []uint32           // of a rule by autonomous system
	anonymous geo.AnonymousKinds // of a rule by anonymous network
}

type kind uint8

const (
	anyViewer kind = iota
	byAddress
	byCountry
	byASN
	byAnonymous
)

// types are the names of the types of rules.
var types = [...]string{
	anyViewer: "any", byAddress: "ip.src", byCountry: "ip.geoip.country", byASN: "ip.geoip.asnum", byAnonymous: "ip.anonymous",
}

// fact returns the fact that rules of a type need. ok is false if they need none. The
// types that need one are last, in the order of the facts.
func (k kind) fact() (fact geo.Fact, ok bool) { return geo.Fact(k - byCountry), k >= byCountry }

// Viewer tells the rules who is asking. A rule asks for a fact only when it needs
// it, so a video plays without a geo database if an earlier rule decides.
type Viewer interface {
	Address() (netip.Addr, error)

	// Facts fails if the needed fact cannot be told. It may be unknown.
	Facts(needed geo.Fact) (geo.Facts, error)
}

// Compile decodes a list in JSON, as in the claim `accessRules`; nil is no list. A rule
// that it does not understand makes the whole list invalid, because that rule could be
// the one that blocks.
func Compile(raw []byte) (List, error) {
	if raw == nil {
		return nil, nil
	}
	list, err := strictjson.Parse(raw, token.MaxDepth)
	if err != nil {
		return nil, err
	}
	if !list.IsArray() {
		return nil, fmt.Errorf("%s is not an array", quote(list))
	}
	count := list.Count()
	if count > maxRules {
		return nil, fmt.Errorf("it has %d rules: want at most %d", count, maxRules)
	}
	rules := make(List, 0, count)
	for element := range list.Elements() {
		rule, err := compileRule(element)
		if err != nil {
			return nil, fmt.Errorf("rule %d: %w", len(rules)+1, err)
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

// CompileClaim compiles the claim `accessRules`, and names it in errors.
func CompileClaim(raw []byte) (List, error) {
	rules, err := Compile(raw)
	if err != nil {
		return nil, fmt.Errorf("accessRules: %w", err)
	}
	return rules, nil
}

// members are the members of a rule.
type members struct{ typ, action, ip, country, asn, kinds strictjson.Value }

// compileRule decodes one rule. It ignores the members that its type does not need,
// because Cloudflare's SDKs send `ip` and `country` in every rule.
func compileRule(object strictjson.Value) (rule Rule, err error) {
	m, err := readMembers(object)
	if err != nil {
		return Rule{}, err
	}
	switch text, _ := m.action.Plain(); string(text) {
	case "allow":
	case "block":
		rule.block = true
	default:
		return Rule{}, fmt.Errorf("action is %s: want \"allow\" or \"block\"", quote(m.action))
	}
	text, _ := m.typ.Plain()
	found := slices.Index(types[:], string(text))
	if found < 0 {
		return Rule{}, fmt.Errorf("type is %s: want one of %q", quote(m.typ), types)
	}
	rule.kind = kind(found)
	switch rule.kind {
	case anyViewer:
	case byAddress:
		rule.prefixes, err = compileList(m.ip, "ip", textOf(parsePrefix))
	case byCountry:
		rule.countries, err = compileList(m.country, "country", textOf(parseRuleCountry))
	case byASN:
		rule.asns, err = compileList(m.asn, "asn", parseASN)
	case byAnonymous:
		rule.anonymous, err = compileKinds(m.kinds)
	}
	return rule, err
}

func readMembers(object strictjson.Value) (m members, err error) {
	if !object.IsObject() {
		return m, errors.New("it is not an object")
	}
	for name, value := range object.Members() {
		switch string(name) {
		case "type":
			m.typ = value
		case "action":
			m.action = value
		case "ip":
			m.ip = value
		case "country":
			m.country = value
		case "asn":
			m.asn = value
		case "kinds":
			m.kinds = value
		default:
			return m, fmt.Errorf("unknown member %.40q: want type, action, ip, country, asn or kinds", name)
		}
	}
	return m, nil
}

// compileList decodes the array that a rule needs. It must not be empty.
func compileList[T any](list strictjson.Value, name string, parse func(strictjson.Value) (T, error)) ([]T, error) {
	count := list.Count()
	if count == 0 {
		return nil, fmt.Errorf("%s is %s: want an array with at least one element", name, quote(list))
	}
	compiled := make([]T, 0, count)
	for element := range list.Elements() {
		value, err := parse(element)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		compiled = append(compiled, value)
	}
	return compiled, nil
}

// compileKinds decodes the kinds of anonymous networks. A rule without them means all.
func compileKinds(list strictjson.Value) (kinds geo.AnonymousKinds, err error) {
	if !list.Present() {
		return geo.AnyAnonymous, nil
	}
	listed, err := compileList(list, "kinds", textOf(geo.ParseAnonymousKind))
	for _, kind := range listed {
		kinds |= kind
	}
	return kinds, err
}

// textOf returns a parser of strings.
func textOf[T any](parse func(string) (T, error)) func(strictjson.Value) (T, error) {
	return func(v strictjson.Value) (value T, err error) {
		text, ok := v.Text()
		if !ok {
			return value, fmt.Errorf("%s is not a string", quote(v))
		}
		return parse(text)
	}
}

// quote shows a value of a list in an error, shortened.
func quote(v strictjson.Value) string {
	const most = 40
	switch raw := v.Raw(); {
	case !v.Present():
		return "missing"
	case len(raw) > most:
		return string(raw[:most]) + "…"
	default:
		return string(raw)
	}
}

// parsePrefix reads an address or a CIDR. IPv4-mapped IPv6 becomes IPv4, as in the
// addresses of viewers.
func parsePrefix(s string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		addr, addrErr := netip.ParseAddr(s)
		if addrErr != nil || addr.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is neither an IP address nor a CIDR", s)
		}
		prefix = netip.PrefixFrom(addr, addr.BitLen())
	}
	if prefix.Addr().Is4In6() && prefix.Bits() >= 96 {
		prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
	}
	return prefix.Masked(), nil
}

func parseRuleCountry(s string) (geo.CountryCode, error) {
	code, ok := geo.ParseCountryCode(s)
	if !ok {
		return geo.CountryCode{}, fmt.Errorf("%q is not an ISO 3166-1 alpha-2 code", s)
	}
	return code, nil
}

// parseASN reads the number of an autonomous system, which has one spelling. 0 is not a
// number of a system.
func parseASN(v strictjson.Value) (uint32, error) {
	number, err := strconv.ParseUint(string(v.Raw()), 10, 32)
	if err != nil || number == 0 {
		return 0, fmt.Errorf("%s is not the number of an autonomous system, like 64500", quote(v))
	}
	return uint32(number), nil
}

// NoRule is the index that Match returns if no rule matches.
const NoRule = -1

// Match returns the index of the first rule that matches the viewer, which
// decides, or NoRule. With an error it returns the index of the rule that it
// could not evaluate.
func (l List) Match(v Viewer) (int, error) {
	for i := range l {
		if matches, err := l[i].matches(v); matches || err != nil {
			return i, err
		}
	}
	return NoRule, nil
}

// Allows reports whether the viewer may play, given what Match has returned. A
// viewer that no rule matches may.
func (l List) Allows(matched int) bool {
	return matched == NoRule || !l[matched].block
}

func (r *Rule) matches(v Viewer) (bool, error) {
	fact, ok := r.kind.fact()
	switch {
	case ok:
		facts, err := v.Facts(fact)
		return err == nil && r.matchesFacts(facts), err
	case r.kind == anyViewer:
		return true, nil
	}
	addr, err := v.Address()
	if err != nil {
		return false, err
	}
	for _, prefix := range r.prefixes {
		if prefix.Contains(addr) {
			return true, nil
		}
	}
	return false, nil
}

// matchesFacts reports whether the list of a rule contains the fact of its type. A rule has
// one list that is not empty. An unknown fact matches nothing.
func (r *Rule) matchesFacts(facts geo.Facts) bool {
	return slices.Contains(r.countries, facts.Country) || slices.Contains(r.asns, facts.ASN) || r.anonymous&facts.Anonymous != 0
}

// Missing says which rules need a database that the gateway does not have. has tells
// the facts for which it has one.
func (l List) Missing(has func(geo.Fact) bool) (missing []string) {
	for fact := range geo.FactCount {
		k := byCountry + kind(fact)
		if !has(fact) && slices.ContainsFunc(l, func(r Rule) bool { return r.kind == k }) {
			missing = append(missing, fmt.Sprintf("there is a rule of type %s and the gateway has no %s", types[k], fact.Option()))
		}
	}
	return missing
}

// Weight estimates the memory of a list in bytes.
func (l List) Weight() (bytes int) {
	const rule, prefix, country, asn = 88, 32, 2, 4
	for _, r := range l {
		bytes += rule + prefix*len(r.prefixes) + country*len(r.countries) + asn*len(r.asns)
	}
	return bytes
}

// String returns the type, the list and the action of a rule:
// `ip.geoip.country [GB US] block`.
func (r Rule) String() string {
	var values []string
	for _, prefix := range r.prefixes {
		values = append(values, strings.TrimSuffix(prefix.String(), fmt.Sprint("/", prefix.Addr().BitLen())))
	}
	for _, country := range r.countries {
		values = append(values, country.String())
	}
	for _, asn := range r.asns {
		values = append(values, strconv.FormatUint(uint64(asn), 10))
	}
	if r.anonymous != geo.AnyAnonymous && r.anonymous != 0 {
		values = append(values, r.anonymous.String())
	}
	text := types[r.kind]
	if values != nil {
		text += " [" + strings.Join(values, " ") + "]"
	}
	return text + " " + r.action()
}

// action returns `allow` or `block`.
func (r Rule) action() string {
	if r.block {
		return "block"
	}
	return "allow"
}

// seen describes the facts of a viewer that the rule depends on, such as
// `client 203.0.113.7 is in GB, `. It is "" if the rule depends on none.
func (r Rule) seen(v Viewer) string {
	addr, err := v.Address()
	if err != nil || r.kind == anyViewer {
		return ""
	}
	fact, needed := r.kind.fact()
	if !needed {
		return fmt.Sprintf("client is %s, ", addr)
	}
	facts, _ := v.Facts(fact)
	seen := "no known country"
	switch {
	case r.kind == byCountry && facts.Country != geo.CountryCode{}:
		seen = facts.Country.String()
	case r.kind == byASN && facts.ASN != 0:
		seen = fmt.Sprint("AS", facts.ASN)
	case r.kind == byASN:
		seen = "no known autonomous system"
	case r.kind == byAnonymous && facts.Anonymous != 0:
		seen = fmt.Sprintf("an anonymous network (%s)", facts.Anonymous)
	case r.kind == byAnonymous:
		seen = "no known anonymous network"
	}
	return fmt.Sprintf("client %s is in %s, ", addr, seen)
}

// countryWarning says that no database has a country code, "" if it may be in one.
func countryWarning(code string) string {
	region, err := language.ParseRegion(code)
	switch current := region.Canonicalize(); {
	case err != nil || !region.IsCountry():
		return fmt.Sprintf("%q is not the code of a country, so it matches nobody", code)
	case current != region:
		return fmt.Sprintf("%q is not the code of a country in ISO 3166-1, so it matches nobody: the code is %q", code, current)
	}
	return ""
}

// Warnings describes rules that are valid and probably a mistake. has reports whether the
// gateway has a database for a fact.
func (l List) Warnings(has func(geo.Fact) bool) (warnings []string) {
	if len(l) == 0 {
		return nil
	}
	last := l[len(l)-1]
	blocks := slices.ContainsFunc(l, func(rule Rule) bool { return rule.block })
	if !last.block && (last.kind != anyViewer || !blocks) {
		warnings = append(warnings, `the last rule allows, and a viewer who matches no rule is allowed as well, so it restricts nothing; end the list with {"type":"any","action":"block"}`)
	}
	var v4, v6 bool
	for _, rule := range l {
		for _, country := range rule.countries {
			if w := countryWarning(country.String()); w != "" {
				warnings = append(warnings, w)
			}
		}
		for _, prefix := range rule.prefixes {
			v4 = v4 || prefix.Addr().Is4()
			v6 = v6 || prefix.Addr().Is6()
		}
	}
	for _, missing := range l.Missing(has) {
		warnings = append(warnings, missing+", so viewers to whom it applies are refused")
	}
	if v4 && !v6 {
		warnings = append(warnings, "there are rules for IPv4 addresses and none for IPv6, and viewers who have both may come by IPv6")
	}
	return warnings
}

// Explain shows for each rule whether it matches the viewer. matched is the index of the rule
// that decides, or, if failed, that cannot be evaluated.
func (rules List) Explain(v Viewer, matched int, failed bool) (details []string) {
	for i, rule := range rules {
		made := "not reached"
		switch {
		case i < matched || matched == NoRule:
			made = rule.seen(v) + "no match"
		case i == matched && failed:
			made = "cannot be evaluated"
		case i == matched:
			made = rule.seen(v) + "match: " + rule.action()
		}
		details = append(details, fmt.Sprintf("rule %d of %d: %s: %s", i+1, len(rules), rule, made))
	}
	if matched == NoRule {
		details = append(details, "no rule matches, so the viewer is allowed")
	}
	return details
}
