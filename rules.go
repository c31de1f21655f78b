package signedplayback

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/text/language"

	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// maxRules is how many access rules a token may have.
const maxRules = 64

// accessRules are the compiled `accessRules` of a token. They are immutable.
type accessRules []accessRule

// accessRule is one compiled rule.
type accessRule struct {
	kind      ruleKind
	block     bool
	prefixes  []netip.Prefix    // of a rule by address
	countries []geo.CountryCode // of a rule by country
}

type ruleKind uint8

const (
	anyViewer ruleKind = iota
	byAddress
	byCountry
)

// viewer tells the rules who is asking. A rule asks for a fact only when it needs
// it, so a token plays without a geo database if an earlier rule decides. Errors
// are refusals.
type viewer interface {
	address() (netip.Addr, error)
	country() (geo.CountryCode, error)
}

// compileRules decodes the `accessRules` claim, nil for no claim. A rule that it
// does not understand makes the whole token invalid, because that rule could be
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
	count := list.Count()
	if count > maxRules {
		return nil, fmt.Errorf("accessRules has %d rules: want at most %d", count, maxRules)
	}
	rules := make(accessRules, 0, count)
	for element := range list.Elements() {
		rule, err := compileRule(element)
		if err != nil {
			return nil, fmt.Errorf("accessRules, rule %d: %w", len(rules)+1, err)
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

// compileRule decodes one rule. It ignores `ip` and `country` where the type does
// not need them, because Cloudflare's SDKs send both in every rule.
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
		default:
			return accessRule{}, fmt.Errorf("unknown member %.40q: want type, action, ip or country", name)
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
		rule.kind = anyViewer
	case "ip.src":
		rule.kind = byAddress
		rule.prefixes, err = compileList(ip, "ip", parsePrefix)
	case "ip.geoip.country":
		rule.kind = byCountry
		rule.countries, err = compileList(country, "country", parseRuleCountry)
	default:
		return accessRule{}, fmt.Errorf("type is %s: want \"any\", \"ip.src\" or \"ip.geoip.country\"", quote(typ))
	}
	return rule, err
}

// compileList decodes the array of strings that a rule needs. It must not be
// empty.
func compileList[T any](list strictjson.Value, name string, parse func(string) (T, error)) ([]T, error) {
	count := list.Count()
	if count == 0 {
		return nil, fmt.Errorf("%s is %s: want an array with at least one element", name, quote(list))
	}
	compiled := make([]T, 0, count)
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
	return compiled, nil
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

// noRule is the index that match returns if no rule matches.
const noRule = -1

// match returns the index of the first rule that matches the viewer, which
// decides, or noRule. With an error it returns the index of the rule that it
// could not evaluate.
func (rules accessRules) match(v viewer) (int, error) {
	for i := range rules {
		rule := &rules[i]
		if matches, err := rule.matches(v); matches || err != nil {
			return i, err
		}
	}
	return noRule, nil
}

// allow reports whether the viewer may play, given what match has returned. A
// viewer that no rule matches may.
func (rules accessRules) allow(matched int) bool {
	return matched == noRule || !rules[matched].block
}

func (r *accessRule) matches(v viewer) (bool, error) {
	switch r.kind {
	case anyViewer:
		return true, nil
	case byAddress:
		return r.matchesAddress(v)
	default:
		country, err := v.country()
		return err == nil && slices.Contains(r.countries, country), err
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

// warnings says what is valid in rules and probably not meant.
func (rules accessRules) warnings(hasCountries bool) (warnings []string) {
	if len(rules) == 0 {
		return nil
	}
	last := rules[len(rules)-1]
	blocks := slices.ContainsFunc(rules, func(rule accessRule) bool { return rule.block })
	if !last.block && (last.kind != anyViewer || !blocks) {
		warnings = append(warnings, `the last of the accessRules allows, and a viewer who matches no rule is allowed as well, so it restricts nothing; end the list with {"type":"any","action":"block"}`)
	}
	var v4, v6, countries bool
	for _, rule := range rules {
		countries = countries || rule.kind == byCountry
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
	if countries && !hasCountries {
		warnings = append(warnings, "there is a rule of type ip.geoip.country and the gateway has no geoip_database, so viewers to whom it applies are refused")
	}
	if v4 && !v6 {
		warnings = append(warnings, "there are rules for IPv4 addresses and none for IPv6, and viewers who have both may come by IPv6")
	}
	return warnings
}
