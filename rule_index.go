package signedplayback

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"

	"github.com/signed-playback/caddy-signed-playback/internal/geo"
)

// ruleIndex finds what accessRules.match finds, in time that grows with the
// logarithm of the number of rules, networks and countries. It is immutable.
type ruleIndex struct {
	anyone       uint8 // the first rule that matches everybody; those behind it are not in the index
	needsAddress uint8 // the first that needs the viewer's address
	needsCountry uint8 // the first that needs his country
	spans        []addressSpan
	countries    []countryRule
}

// beyondRules is greater than the place of any rule.
const beyondRules uint8 = maxRules

// addressSpan has the first rule that matches the addresses from one up to the
// next span. IPv4 comes before IPv6, as in netip.Addr.Compare.
type addressSpan struct {
	from netip.Addr
	rule uint8
}

// countryRule is the first rule that matches a country.
type countryRule struct {
	code geo.CountryCode
	rule uint8
}

// networkRule is a network of a rule.
type networkRule struct {
	netip.Prefix
	rule uint8
}

// index returns nil for rules of which there are so few that looking at each
// is as fast, and takes less memory.
func (rules accessRules) index() *ruleIndex {
	const fewRules, fewEntries = 8, 32
	entries := 0
	for i := range rules {
		entries += len(rules[i].prefixes) + len(rules[i].countries.String())/len(geo.CountryCode{})
	}
	if len(rules) <= fewRules && entries <= fewEntries {
		return nil
	}
	return newRuleIndex(rules)
}

func newRuleIndex(rules accessRules) *ruleIndex {
	x := &ruleIndex{anyone: beyondRules, needsAddress: beyondRules, needsCountry: beyondRules}
	var networks []networkRule
	for i := range rules {
		rule, place := &rules[i], uint8(i)
		switch rule.of {
		case ofAddress:
			x.needsAddress = min(x.needsAddress, place)
			for _, prefix := range rule.prefixes {
				networks = append(networks, networkRule{prefix, place})
			}
		case ofCountry:
			x.needsCountry = min(x.needsCountry, place)
			list := rule.countries.String()
			for from := 0; from < len(list); from += len(geo.CountryCode{}) {
				x.countries = append(x.countries, countryRule{geo.CountryCode([]byte(list[from:])), place})
			}
		case ofAnyone:
			x.anyone = min(x.anyone, place)
		}
		if x.anyone < beyondRules {
			break
		}
	}
	x.spans = spansOf(networks)
	slices.SortStableFunc(x.countries, func(a, b countryRule) int { return bytes.Compare(a.code[:], b.code[:]) })
	x.countries = slices.Clone(slices.CompactFunc(x.countries, func(a, b countryRule) bool { return a.code == b.code }))
	return x
}

// spansOf takes networks apart into spans. Of two networks, one contains the
// other or they are apart.
func spansOf(networks []networkRule) (spans []addressSpan) {
	slices.SortFunc(networks, func(a, b networkRule) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	begin := func(from netip.Addr, rule uint8) {
		if last := len(spans) - 1; last >= 0 && spans[last].from == from {
			spans[last].rule = rule
			return
		}
		spans = append(spans, addressSpan{from, rule})
	}
	// Networks around the present address, each in the one before, with the
	// first of the rules of all that are around it.
	around := []networkRule{{rule: beyondRules}}
	leave := func() {
		left := around[len(around)-1]
		around = around[:len(around)-1]
		if next := addressAfter(left.Prefix); next.IsValid() {
			begin(next, around[len(around)-1].rule)
		}
	}
	for _, network := range networks {
		for len(around) > 1 && !around[len(around)-1].Contains(network.Addr()) {
			leave()
		}
		network.rule = min(network.rule, around[len(around)-1].rule)
		begin(network.Addr(), network.rule)
		around = append(around, network)
	}
	for len(around) > 1 {
		leave()
	}
	return slices.Clone(spans) // without room to grow
}

// addressAfter returns the first address behind a network, which is not valid
// if there is none.
func addressAfter(network netip.Prefix) netip.Addr {
	last := network.Addr().AsSlice()
	for bit := network.Bits(); bit < 8*len(last); bit++ {
		last[bit/8] |= 0x80 >> (bit % 8)
	}
	addr, _ := netip.AddrFromSlice(last)
	if next := addr.Next(); next.IsValid() || addr.Is6() {
		return next
	}
	return netip.IPv6Unspecified()
}

// match is accessRules.match.
func (x *ruleIndex) match(v viewer) (int, error) {
	first, second := x.matchAddress, x.matchCountry
	if x.needsCountry < x.needsAddress {
		first, second = second, first
	}
	matched, err := first(v, x.anyone)
	if err == nil {
		matched, err = second(v, matched)
	}
	if matched == beyondRules {
		return noRule, nil
	}
	return int(matched), err
}

// matchAddress returns the first rule that matches: the one that has so far, or
// one before it that is about addresses. The address is asked for only if there
// is such a rule.
func (x *ruleIndex) matchAddress(v viewer, matched uint8) (uint8, error) {
	if x.needsAddress >= matched {
		return matched, nil
	}
	addr, err := v.address()
	if err != nil {
		return x.needsAddress, err
	}
	at, found := slices.BinarySearchFunc(x.spans, addr, func(s addressSpan, a netip.Addr) int { return s.from.Compare(a) })
	if !found {
		at--
	}
	if at < 0 || addr.Zone() != "" {
		return matched, nil // netip.Prefix contains no address with a zone
	}
	return min(matched, x.spans[at].rule), nil
}

// matchCountry is matchAddress for countries.
func (x *ruleIndex) matchCountry(v viewer, matched uint8) (uint8, error) {
	if x.needsCountry >= matched {
		return matched, nil
	}
	country, err := v.country()
	if err != nil {
		return x.needsCountry, err
	}
	at, found := slices.BinarySearchFunc(x.countries, country, func(r countryRule, c geo.CountryCode) int { return bytes.Compare(r.code[:], c[:]) })
	if !found {
		return matched, nil
	}
	return min(matched, x.countries[at].rule), nil
}

// weight is the memory that an index takes, in bytes.
func (x *ruleIndex) weight() int {
	if x == nil {
		return 0
	}
	const ofIndex, ofSpan, ofCountry = 64, 32, 3
	return ofIndex + ofSpan*len(x.spans) + ofCountry*len(x.countries)
}
