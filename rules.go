package signedplayback

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// maxRules is how many access rules a token may have.
const maxRules = 64

// accessRules are the compiled `accessRules` of a token. They are immutable,
// and nil where a token has none.
type accessRules []accessRule

// accessRule is one of them. There may be a hundred thousand in the cache, so it
// is kept small.
type accessRule struct {
	of        ruleType
	block     bool
	prefixes  []netip.Prefix
	countries sharedText // two letters each
}

type ruleType uint8

const (
	ofAnyone ruleType = iota
	ofAddress
	ofCountry
)

// countryList is a list of country codes, one after the other.
type countryList string

func (l countryList) contains(c geo.CountryCode) bool {
	for i := 0; i+len(c) <= len(l); i += len(c) {
		if l[i:i+len(c)] == countryList(c[:]) {
			return true
		}
	}
	return false
}

// any reports whether the rule matches every viewer.
func (r *accessRule) any() bool { return len(r.prefixes) == 0 && r.countries == sharedText{} }

// viewer tells rules who is asking. Both facts are looked up when a rule needs
// them and not before, so a token whose rules do not get that far plays
// without them. Errors are refusals.
type viewer interface {
	address() (netip.Addr, error)
	country() (geo.CountryCode, error)
}

// compileRules decodes the `accessRules` claim. One rule that is not
// understood makes the whole token invalid: a rule that is passed over could be
// the one that blocks.
func compileRules(raw []byte) (accessRules, error) {
	if raw == nil {
		return nil, nil
	}
	list, err := strictjson.Parse(raw, token.MaxDepth)
	if err != nil {
		return nil, fmt.Errorf("accessRules: %w", err)
	}
	if !list.IsArray() {
		return nil, errors.New("accessRules is not an array")
	}
	var rules accessRules
	for element := range list.Elements() {
		if len(rules) == maxRules {
			return nil, fmt.Errorf("accessRules has more than %d rules", maxRules)
		}
		rule, err := compileRule(element)
		if err != nil {
			return nil, fmt.Errorf("accessRules, rule %d: %w", len(rules)+1, err)
		}
		rules = append(rules, rule)
	}
	return slices.Clone(rules), nil // without room to grow
}

func compileRule(object strictjson.Value) (accessRule, error) {
	if !object.IsObject() {
		return accessRule{}, errors.New("it is not an object")
	}
	var typ, action, ip, country strictjson.Value
	for name, value := range object.Members() {
		switch string(name) {
		case "type":
			typ = value
		case "action":
			action = value
		case "ip":
			ip = value
		case "country":
			country = value
		}
	}
	var rule accessRule
	switch text, _ := action.Plain(); string(text) {
	case "allow":
	case "block":
		rule.block = true
	default:
		return accessRule{}, fmt.Errorf("action is %s: want \"allow\" or \"block\"", quote(action))
	}
	var err error
	switch text, _ := typ.Plain(); string(text) {
	case "any":
		rule.of = ofAnyone
	case "ip.src":
		rule.of = ofAddress
		rule.prefixes, err = compileList(ip, "ip", parsePrefix)
	case "ip.geoip.country":
		rule.of = ofCountry
		var codes []geo.CountryCode
		codes, err = compileList(country, "country", parseRuleCountry)
		rule.countries = shareText(joinCountries(codes))
	default:
		return accessRule{}, fmt.Errorf("type is %s: want \"any\", \"ip.src\" or \"ip.geoip.country\"", quote(typ))
	}
	return rule, err
}

// compileList decodes the array that a rule needs: at least one string, each of
// which parse understands.
func compileList[T any](list strictjson.Value, name string, parse func(string) (T, error)) ([]T, error) {
	var compiled []T
	for element := range list.Elements() {
		text, ok := element.Text()
		if !ok {
			return nil, fmt.Errorf("%s holds %s: want strings", name, quote(element))
		}
		value, err := parse(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		compiled = append(compiled, value)
	}
	if compiled == nil {
		return nil, fmt.Errorf("%s is %s: want an array with at least one element", name, quote(list))
	}
	return slices.Clone(compiled), nil // without room to grow
}

// quote shows a value of the claim in an error, shortened.
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

// parsePrefix reads an address or a CIDR. IPv4-mapped IPv6 ones become IPv4,
// as viewers' addresses do.
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

func joinCountries(codes []geo.CountryCode) string {
	joined := make([]byte, 0, 2*len(codes))
	for _, code := range codes {
		joined = append(joined, code[:]...)
	}
	return string(joined)
}

func parseRuleCountry(s string) (geo.CountryCode, error) {
	code, ok := geo.ParseCountryCode(s)
	if !ok {
		return geo.CountryCode{}, fmt.Errorf("%q is not an ISO 3166-1 alpha-2 code", s)
	}
	return code, nil
}

// noRule stands for the rule that matches a viewer whom none matches.
const noRule = -1

// match evaluates the rules for a viewer: the first that matches decides. It
// returns its index, noRule if there is none; with an error, that of the rule
// that cannot be evaluated.
func (rules accessRules) match(v viewer) (int, error) {
	for i := range rules {
		rule := &rules[i]
		if matches, err := rule.matches(v); matches || err != nil {
			return i, err
		}
	}
	return noRule, nil
}

// allow reports whether a viewer whom a rule matches may play. One whom none
// matches may.
func (rules accessRules) allow(matched int) bool {
	return matched == noRule || !rules[matched].block
}

func (r *accessRule) matches(v viewer) (bool, error) {
	switch r.of {
	case ofAnyone:
		return true, nil
	case ofAddress:
		return r.matchesAddress(v)
	default:
		country, err := v.country()
		return err == nil && countryList(r.countries.String()).contains(country), err
	}
}

func (r *accessRule) matchesAddress(v viewer) (bool, error) {
	addr, err := v.address()
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
