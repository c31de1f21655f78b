package signedplayback

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// netipEdges are addresses at the ends of a network, and those beside them.
func netipEdges(network netip.Prefix) (edges []string) {
	first := network.Masked().Addr()
	edges = append(edges, first.String())
	if before := first.Prev(); before.IsValid() {
		edges = append(edges, before.String())
	}
	bytes := first.AsSlice()
	for bit := network.Bits(); bit < 8*len(bytes); bit++ {
		bytes[bit/8] |= 1 << (7 - bit%8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	edges = append(edges, last.String())
	if after := last.Next(); after.IsValid() {
		edges = append(edges, after.String())
	}
	return edges
}

// crowdedNetwork returns one of few networks, many of which lie in each other or
// side by side, or end where their family ends.
func crowdedNetwork(random *rand.Rand) netip.Prefix {
	if random.IntN(2) == 0 {
		addr := netip.AddrFrom4([4]byte{byte(random.IntN(2) * 255), byte(random.IntN(2) * 255), byte(random.IntN(3) * 127), byte(random.IntN(256))})
		return netip.PrefixFrom(addr, []int{0, 1, 8, 9, 16, 23, 24, 30, 31, 32}[random.IntN(10)]).Masked()
	}
	bytes := [16]byte{0: byte(random.IntN(2) * 255), 1: byte(random.IntN(2) * 255), 15: byte(random.IntN(4))}
	if random.IntN(2) == 0 {
		for i := range 15 {
			bytes[i] = bytes[0]
		}
	}
	return netip.PrefixFrom(netip.AddrFrom16(bytes), []int{0, 1, 7, 8, 64, 95, 126, 127, 128}[random.IntN(9)]).Masked()
}

// Rules by the hundred must let in and keep out whom they would one by one, at
// the edges of networks within networks, where families end, and where the
// address or the country cannot be told.
func TestRuleIndexFindsTheFirstMatch(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	countries := []string{"GB", "DE", "FR", "US", "AA", "ZZ"}
	for range 300 {
		var rules []string
		var addrs []string
		for range random.IntN(maxRules + 1) {
			action := either(random.IntN(2) == 0, "allow", "block")
			switch random.IntN(40) {
			case 0:
				rules = append(rules, fmt.Sprintf(`{"type":"any","action":%q}`, action))
			case 1, 2, 3, 4, 5, 6, 7, 8, 9, 10:
				rules = append(rules, fmt.Sprintf(`{"type":"ip.geoip.country","country":[%q],"action":%q}`, countries[random.IntN(len(countries)-1)], action))
			default:
				network, other := crowdedNetwork(random), crowdedNetwork(random)
				addrs = append(addrs, append(netipEdges(network), netipEdges(other)...)...)
				rules = append(rules, fmt.Sprintf(`{"type":"ip.src","ip":[%q,%q],"action":%q}`, network, other, action))
			}
		}
		compiled, err := compileRules([]byte("[" + strings.Join(rules, ",") + "]"))
		if err != nil {
			t.Fatal(err)
		}
		index := newRuleIndex(compiled)
		for _, addr := range append(addrs, "", "203.0.113.7", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "255.255.255.255", "0.0.0.0", "fe80::1%eth0", "::ffff:255.255.255.255") {
			viewer := &somebody{addr: addr, country_: append(countries, "", "unknown")[random.IntN(len(countries)+2)]}
			if _, err := allowedBy(compiled, index, viewer); err != nil && !errors.Is(err, errTestAddress) && !errors.Is(err, errTestCountry) {
				t.Fatalf("%s: %v", rules, err)
			}
		}
	}
}

func either[T any](condition bool, yes, no T) T {
	if condition {
		return yes
	}
	return no
}

// Few rules are looked at one by one, which is as fast and takes less memory;
// many have an index, and its memory counts.
func TestRuleIndexIsForManyRules(t *testing.T) {
	networks := func(n int) string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf("%q", netip.AddrFrom4([4]byte{10, 0, byte(i), 0})))
		}
		return `{"type":"ip.src","action":"allow","ip":[` + strings.Join(list, ",") + `]}`
	}
	for _, tc := range []struct {
		name    string
		rules   []string
		indexed bool
	}{
		{"none", nil, false},
		{"eight", []string{networks(4), networks(4), networks(4), networks(4), networks(4), networks(4), networks(4), networks(4)}, false},
		{"nine", []string{networks(1), networks(1), networks(1), networks(1), networks(1), networks(1), networks(1), networks(1), networks(1)}, true},
		{"one with very many networks", []string{networks(33)}, true},
	} {
		verified := newVerifiedToken(token.Claims{}, must(compileRules([]byte("["+strings.Join(tc.rules, ",")+"]"))), testKey().Public())
		if got := verified.index != nil; got != tc.indexed {
			t.Errorf("%s: indexed is %t, want %t", tc.name, got, tc.indexed)
		}
		plain := *verified
		plain.index = nil
		if got := verified.weight("") > plain.weight(""); got != tc.indexed {
			t.Errorf("%s: that the index counts is %t, want %t", tc.name, got, tc.indexed)
		}
	}
}
