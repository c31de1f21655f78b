package accessrules

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/geo"
)

// manyRules returns an array of n rules.
func manyRules(n int) string {
	return "[" + strings.TrimSuffix(strings.Repeat(`{"type":"any","action":"block"},`, n), ",") + "]"
}

// The attack, and as often the typing error: a rule that one program skips
// because it does not understand it may be the one that keeps somebody out. So
// one such rule makes the whole token invalid. The keys are in the error.
var badRules = func() map[string][]string {
	rules := map[string][]string{
		"not an array":                {`null`, `{"type":"any","action":"block"}`, `"block"`, `0`, `false`},
		"json":                        {``, `[{"type":"any","action":"block"}`, `[] []`, `[{"type":"any","action":"block",}]`},
		"rule 1: it is not an object": {`[null]`, `[[]]`, `["block"]`},
		"rule 2: it is not an object": {`[{"type":"any","action":"allow"},null]`},
		"rule 2: action is missing":   {`[{"type":"any","action":"block"},{"type":"any"}]`},
		"at most 64":                  {manyRules(65), manyRules(10_000)},
		"action is missing":           {`[{}]`, `[{"type":"any"}]`},
		"duplicate": {
			`[{"type":"any","action":"allow","action":"block"}]`, `[{"type":"any","action":"allow","\u0061ction":"block"}]`,
			`[{"type":"any","action":"block","ip":{"a":1,"a":2}}]`,
		},
		"type is missing":    {`[{"action":"block"}]`},
		"country is missing": {`[{"type":"ip.geoip.country","action":"block","ip":["203.0.113.7"]}]`},
		"ip is missing":      {`[{"type":"ip.src","action":"block","country":["US"]}]`},
		"asn is missing":     {`[{"type":"ip.geoip.asnum","action":"block","ip":["203.0.113.7"]}]`},
		"UTF-8":              {"[{\"type\":\"any\",\"action\":\"block\",\"ip\":\"\xff\"}]"},
		"deep":               {strings.Repeat("[", 1000) + strings.Repeat("]", 1000)},
	}
	rules[strings.Repeat("x", 39)+"…"] = []string{`[{"type":"` + strings.Repeat("x", 1000) + `","action":"block"}]`}
	for _, action := range []string{`"deny"`, `"Block"`, `"block "`, `"\u0062lock"`, `""`, `null`, `true`, `["block"]`} {
		rules["action is "+action] = []string{`[{"type":"any","action":` + action + `}]`}
	}
	for _, member := range []string{ // of a rule that would block more, or somebody else
		"ips", "IP", "Ip", "iP", "countries", "Country", "coutry", "Type", "Action", "asns", "kind", "note", "not", "id", "enabled", "",
		"ip ", "i_p", "i\u200bp", "ｉｐ", "\u0131p", "countr\u0443", strings.Repeat("x", 1000),
	} {
		shown := fmt.Sprintf("unknown member %.40q", member)
		for _, rule := range []string{
			`{"type":"any","action":"allow",%s:["0.0.0.0/0"]}`, `{"type":"ip.src","action":"block","ip":["203.0.113.7"],%s:["0.0.0.0/0"]}`,
			`{%s:["US"],"type":"ip.geoip.country","country":["GB"],"action":"block"}`,
		} {
			rules[shown] = append(rules[shown], `[{"type":"any","action":"block"},`+fmt.Sprintf(rule, must(json.Marshal(member)))+`]`)
		}
	}
	for _, name := range []string{`"ip.geoip.asn"`, `"ip.anonymous "`, `"ANY"`, `"ip.src "`, `null`, `1`} {
		rules["type is "+name] = []string{`[{"type":` + name + `,"action":"block","ip":["203.0.113.7"]}]`}
	}
	for _, tc := range []struct {
		name, kind, good string
		bad              []string
	}{
		{"country", "ip.geoip.country", `"US"`, []string{`null`, `840`, `["US"]`}},
		{"ip", "ip.src", `"::1"`, []string{`null`, `840`, `["::1"]`}},
		{"asn", "ip.geoip.asnum", `64500`, []string{
			`null`, `"64500"`, `"AS64500"`, `[64500]`, `0`, `-1`, `-0`, `1.5`, `64500.0`, `6e4`, `4294967296`, `1e100`, `true`,
		}},
		{"kinds", "ip.anonymous", `"vpn"`, []string{`null`, `1`, `["vpn"]`, `"VPN"`, `"vpn "`, `"any"`, `"anonymous"`, `"tor_exit_node"`, `"is_anonymous_vpn"`, `""`, `"*"`}},
	} {
		rule := `[{"type":"` + tc.kind + `","action":"block","` + tc.name + `":`
		for _, value := range []string{`[]`, tc.good, `null`, `{"US":1}`} {
			rules[tc.name+" is "+value] = []string{rule + value + `}]`}
		}
		for _, element := range tc.bad {
			rules[tc.name+": "+element] = []string{rule + `[` + element + `]}]`, rule + `[` + tc.good + `,` + element + `]}]`}
		}
	}
	return rules
}()

func TestBadRulesMakeTheTokenInvalid(t *testing.T) {
	t.Parallel()
	refuse := func(row, raw, want string) {
		t.Helper()
		rules, err := Compile([]byte(raw))
		if err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 200 || rules != nil {
			t.Errorf("%s Compile(%.100s) = %v, %v, want no rules and a short error with %s", row, raw, rules, err, want)
		}
	}
	for want, lists := range badRules {
		for _, raw := range lists {
			refuse("J35", raw, want)
		}
	}
	for _, action := range []string{"allow", "block"} {
		for _, country := range badCountries {
			rule := map[string]any{"type": "ip.geoip.country", "action": action, "country": []string{"US", country}}
			refuse("N8", string(must(json.Marshal([]any{rule}))), fmt.Sprintf("%q", country))
		}
		for _, address := range badAddresses {
			rule := map[string]any{"type": "ip.src", "action": action, "ip": []string{"::/0", address}}
			refuse("N6", string(must(json.Marshal([]any{rule}))), fmt.Sprintf("%q", address))
		}
	}
	refuse("N8", `[{"type":"ip.geoip.country","action":"block","country":["U\u017f"]}]`, "U\u017f") // escaped
}

// somebody is a viewer for the rules, who counts the questions.
type somebody struct {
	addr, country            string // "" for a refusal
	asn                      uint32
	kinds                    geo.AnonymousKinds
	askedAddress, askedFacts int
}

var (
	errTestAddress = errors.New("no address")
	errTestCountry = errors.New("no country")
)

func (s *somebody) Address() (netip.Addr, error) {
	s.askedAddress++
	if s.addr == "" {
		return netip.Addr{}, errTestAddress
	}
	return netip.MustParseAddr(s.addr), nil
}

func (s *somebody) Facts(needed geo.Fact) (geo.Facts, error) {
	s.askedFacts++
	if needed == geo.Country && s.country == "" {
		return geo.Facts{}, errTestCountry
	}
	code, _ := geo.ParseCountryCode(s.country)
	return geo.Facts{Country: code, ASN: s.asn, Anonymous: s.kinds}, nil
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// The two examples of Cloudflare's "Secure your stream", less the trailing
// commas, which are not JSON.
const (
	blockCountries = `[
		{"type": "ip.geoip.country", "action": "block", "country": ["US", "DE", "MX"]}
	]`
	allowCountriesAndNetworks = `[
		{"type": "ip.geoip.country", "country": ["US", "MX"], "action": "allow"},
		{"type": "ip.src", "ip": ["93.184.216.0/24", "2400:cb00::/32"], "action": "allow"},
		{"type": "any", "action": "block"}
	]`
)

// verdicts are rules, viewers and what becomes of them.
var verdicts = []struct {
	rules, addr, country string
	want                 bool
}{
	{blockCountries, "203.0.113.7", "US", false},
	{blockCountries, "203.0.113.7", "DE", false},
	{blockCountries, "203.0.113.7", "MX", false},
	{blockCountries, "203.0.113.7", "GB", true},
	{blockCountries, "203.0.113.7", "unknown", true},
	{blockCountries, "", "GB", true}, // needs no address

	{allowCountriesAndNetworks, "203.0.113.7", "US", true},
	{allowCountriesAndNetworks, "203.0.113.7", "MX", true},
	{allowCountriesAndNetworks, "203.0.113.7", "GB", false},
	{allowCountriesAndNetworks, "93.184.216.34", "GB", true},
	{allowCountriesAndNetworks, "93.184.216.0", "GB", true},
	{allowCountriesAndNetworks, "93.184.216.255", "GB", true},
	{allowCountriesAndNetworks, "93.184.217.0", "GB", false},
	{allowCountriesAndNetworks, "2400:cb00:1::1", "GB", true},
	{allowCountriesAndNetworks, "2400:cb01::1", "GB", false},
	{allowCountriesAndNetworks, "203.0.113.7", "unknown", false}, // N8
	{allowCountriesAndNetworks, "93.184.216.34", "unknown", true},

	{`[]`, "", "", true},
	{`[{"type":"any","action":"block"}]`, "", "", false},
	{`[{"type":"any","action":"allow"}]`, "", "", true},
	{manyRules(64), "", "", false},
	// The first rule that matches decides. If none does, the viewer is allowed.
	{ipRules("203.0.113.7", "allow", "203.0.113.0/24", "block"), "203.0.113.7", "", true},
	{ipRules("203.0.113.7", "block", "203.0.113.0/24", "allow"), "203.0.113.7", "", false},
	{ipRules("203.0.113.7", "allow", "203.0.113.0/24", "block"), "203.0.113.8", "", false},
	{ipRules("203.0.113.7", "block"), "198.51.100.1", "", true},
	{ipRules("203.0.113.7", "allow"), "198.51.100.1", "", true},

	{`[{"type":"ip.geoip.country","action":"block","country":["gb"]}]`, "", "GB", false}, // N8
	{`[{"type":"ip.geoip.country","action":"block","country":["gB"]}]`, "", "GB", false},
	{`[{"type":"ip.geoip.country","action":"block","country":["\u0047B"]}]`, "", "GB", false},
	{`[{"type":"ip.geoip.country","action":"block","country":["XK"]}]`, "", "XK", false},

	{ipRules("203.0.113.7", "block"), "203.0.113.7", "", false},
	{ipRules("203.0.113.7", "block"), "203.0.113.8", "", true},
	{ipRules("203.0.113.7/24", "block"), "203.0.113.200", "", false},
	{ipRules("203.0.113.7/32", "block"), "203.0.113.8", "", true},
	{ipRules("0.0.0.0/0", "block"), "203.0.113.7", "", false},
	{ipRules("0.0.0.0/0", "block"), "2001:db8::1", "", true},
	{ipRules("::/0", "block"), "203.0.113.7", "", true},
	{ipRules("2001:0DB8:0:0::1", "block"), "2001:db8::1", "", false},
	{ipRules("::ffff:203.0.113.7", "block"), "203.0.113.7", "", false}, // N4
	{ipRules("::ffff:cb00:7107", "block"), "203.0.113.7", "", false},
	{ipRules("::ffff:203.0.113.0/120", "block"), "203.0.113.200", "", false},
	{ipRules("::ffff:203.0.113.0/120", "block"), "203.0.114.0", "", true},
	{ipRules("::ffff:0:0/96", "block"), "203.0.113.7", "", false},
	{ipRules("::ffff:203.0.113.0/64", "block"), "203.0.113.7", "", true},
	{`[{"type":"ip.src","action":"block","ip":["198.51.100.1","2001:db8::/32","203.0.113.7"]}]`, "203.0.113.7", "", false},

	// Cloudflare's SDKs send ip and country in every rule.
	{`[{"type":"ip.geoip.country","action":"block","country":["GB"],"ip":["bad"]}]`, "", "GB", false},
	{`[{"type":"ip.src","action":"block","ip":["203.0.113.7"],"country":17}]`, "203.0.113.7", "", false},
	{`[{"type":"any","action":"block","country":null,"ip":{"a":[]}}]`, "", "", false},
	{" [ { \"type\" : \"any\" ,\n\t\"action\" : \"block\" } ]\r\n", "", "", false},
	{`[{"\u0074ype":"any","action":"block"}]`, "", "", false},
}

// noKind is an anonymous network whose kind the database does not tell.
const noKind = geo.AnyAnonymous &^ (1<<5 - 1)

// networkVerdicts are rules about networks, networks and what becomes of their viewers.
var networkVerdicts = []struct {
	rules string
	asn   uint32
	kinds string // joined by spaces; "other" for an anonymous network of no known kind
	want  bool
}{
	{`[{"type":"ip.geoip.asnum","action":"block","asn":[64496,64500]}]`, 64500, "", false},
	{`[{"type":"ip.geoip.asnum","action":"block","asn":[64496,64500]}]`, 64501, "", true},
	{`[{"type":"ip.geoip.asnum","action":"block","asn":[4294967295,1]}]`, 4294967295, "", false},
	{`[{"type":"ip.geoip.asnum","action":"block","asn":[64496]}]`, 0, "vpn", true},
	{`[{"type":"ip.geoip.asnum","action":"allow","asn":[64496]},{"type":"any","action":"block"}]`, 0, "vpn", false},
	{`[{"type":"ip.anonymous","action":"block"}]`, 64500, "", true},
	{`[{"type":"ip.anonymous","action":"block"}]`, 0, "vpn", false},
	{`[{"type":"ip.anonymous","action":"block"}]`, 0, "hosting", false},
	{`[{"type":"ip.anonymous","action":"block"}]`, 0, "other", false},
	{`[{"type":"ip.anonymous","action":"block","kinds":["vpn","tor"]}]`, 0, "tor", false},
	{`[{"type":"ip.anonymous","action":"block","kinds":["vpn","tor"]}]`, 0, "hosting tor", false},
	{`[{"type":"ip.anonymous","action":"block","kinds":["vpn","tor"]}]`, 0, "hosting", true},
	{`[{"type":"ip.anonymous","action":"block","kinds":["vpn","hosting","public_proxy","residential_proxy","tor"]}]`, 0, "other", true},
	{`[{"type":"ip.anonymous","action":"block","kinds":["v\u0070n"],"asn":"x","ip":[],"country":0}]`, 0, "vpn", false},
	{`[{"type":"any","action":"block","kinds":[],"asn":[]}]`, 0, "", false}, // members that the type does not need
	{`[{"type":"ip.anonymous","action":"allow"},{"type":"any","action":"block"}]`, 0, "", false},
	{`[{"type":"ip.anonymous","action":"allow"},{"type":"any","action":"block"}]`, 0, "public_proxy", true},
}

func kindsOf(names string) (kinds geo.AnonymousKinds) {
	for name := range strings.FieldsSeq(names) {
		if name == "other" {
			kinds |= noKind
			continue
		}
		kinds |= must(geo.ParseAnonymousKind(name))
	}
	return kinds
}

func TestRulesAboutNetworks(t *testing.T) {
	t.Parallel()
	for _, tc := range networkVerdicts {
		viewer := &somebody{asn: tc.asn, kinds: kindsOf(tc.kinds)}
		if got, err := allowed(must(Compile([]byte(tc.rules))), viewer); err != nil || got != tc.want {
			t.Errorf("rules %s allow AS%d, %q = %t, %v, want %t", tc.rules, tc.asn, tc.kinds, got, err, tc.want)
		}
	}
}

// ipRules returns ip.src rules of pairs of a network and an action.
func ipRules(pairs ...string) string {
	var rules []map[string]any
	for pair := range slices.Chunk(pairs, 2) {
		rules = append(rules, map[string]any{"type": "ip.src", "ip": pair[:1], "action": pair[1]})
	}
	return string(must(json.Marshal(rules)))
}

func TestRules(t *testing.T) {
	t.Parallel()
	for _, tc := range verdicts {
		rules, err := Compile([]byte(tc.rules))
		if err != nil {
			t.Errorf("Compile(%s) = %v", tc.rules, err)
			continue
		}
		if got, err := allowed(rules, &somebody{addr: tc.addr, country: tc.country}); err != nil || got != tc.want {
			t.Errorf("rules %s allow %q from %q = %t, %v, want %t", tc.rules, tc.addr, tc.country, got, err, tc.want)
		}
	}
}

// allowed evaluates rules as the gate does.
func allowed(rules List, v *somebody) (bool, error) {
	matched, err := rules.Match(v)
	return err == nil && rules.Allows(matched), err
}

// Address and country are looked up when a rule needs them and not before: a token
// whose rules decide earlier plays although the gate cannot tell them. A token that
// needs them does not play.
func TestRulesAskForWhatTheyNeed(t *testing.T) {
	t.Parallel()
	const addressThenCountry = `[
		{"type":"ip.src","ip":["203.0.113.7"],"action":"allow"},
		{"type":"ip.geoip.country","country":["GB"],"action":"allow"},
		{"type":"ip.src","ip":["198.51.100.1"],"action":"allow"},
		{"type":"any","action":"block"}
	]`
	for _, tc := range []struct {
		name, rules              string
		addr, country            string
		want                     bool
		wantErr                  error
		askedAddress, askedFacts int
	}{
		{"no rules", "", "", "", true, nil, 0, 0},
		{"decided before the address", `[{"type":"any","action":"allow"},{"type":"ip.src","ip":["203.0.113.7"],"action":"block"}]`, "", "", true, nil, 0, 0},
		{"blocked before the address", `[{"type":"any","action":"block"},{"type":"ip.src","ip":["203.0.113.7"],"action":"allow"}]`, "", "", false, nil, 0, 0},
		{"decided by the address", addressThenCountry, "203.0.113.7", "", true, nil, 1, 0},
		{"decided by the country", addressThenCountry, "203.0.113.8", "GB", true, nil, 1, 1},
		{"decided at the end", addressThenCountry, "203.0.113.8", "DE", false, nil, 2, 1},
		{"address cannot be told", addressThenCountry, "", "GB", false, errTestAddress, 1, 0},
		{"country cannot be told", addressThenCountry, "203.0.113.8", "", false, errTestCountry, 1, 1},
		{"country cannot be told, though the rule would block", `[{"type":"ip.geoip.country","country":["GB"],"action":"block"}]`, "203.0.113.8", "", false, errTestCountry, 0, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			viewer := &somebody{addr: tc.addr, country: tc.country}
			var raw []byte // nil for a token without the claim
			if tc.rules != "" {
				raw = []byte(tc.rules)
			}
			got, err := allowed(must(Compile(raw)), viewer)
			if got != tc.want || !errors.Is(err, tc.wantErr) {
				t.Errorf("allow = %t, %v, want %t, %v", got, err, tc.want, tc.wantErr)
			}
			if viewer.askedAddress != tc.askedAddress || viewer.askedFacts != tc.askedFacts {
				t.Errorf("asked %d times for the address and %d for the country, want %d and %d",
					viewer.askedAddress, viewer.askedFacts, tc.askedAddress, tc.askedFacts)
			}
		})
	}
}

// plainVerdict evaluates rules that Compile has accepted in the plainest way,
// with encoding/json and package net.
func plainVerdict(t *testing.T, raw []byte, addr net.IP, v *somebody) (allowed bool, rules int) {
	t.Helper()
	var list []struct {
		Type, Action            string
		IP, Country, ASN, Kinds any
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		t.Fatalf("accepted %q, which encoding/json does not read: %v", raw, err)
	}
	for _, rule := range list {
		entries, _ := map[string]any{"ip.src": rule.IP, "ip.geoip.country": rule.Country, "ip.geoip.asnum": rule.ASN, "ip.anonymous": rule.Kinds}[rule.Type].([]any)
		if rule.Type == "ip.anonymous" && rule.Kinds == nil {
			entries = []any{"vpn", "hosting", "public_proxy", "residential_proxy", "tor", "other"}
		}
		if rule.Action != "allow" && rule.Action != "block" || rule.Type != "any" && len(entries) == 0 {
			t.Fatalf("accepted the rule %+v", rule)
		}
		matches := func(entry any) bool {
			text, _ := entry.(string)
			switch rule.Type {
			case "ip.src":
				return covers(t, text, addr)
			case "ip.geoip.asnum":
				return v.asn != 0 && entry == float64(v.asn)
			case "ip.anonymous":
				return v.kinds&kindsOf(text) != 0
			}
			return strings.EqualFold(text, v.country)
		}
		if rule.Type == "any" || slices.ContainsFunc(entries, matches) {
			return rule.Action == "allow", len(list)
		}
	}
	return true, len(list)
}

func covers(t *testing.T, entry string, addr net.IP) bool {
	t.Helper()
	if _, network, err := net.ParseCIDR(entry); err == nil {
		return network.Contains(addr)
	}
	ip := net.ParseIP(entry)
	if ip == nil {
		t.Fatalf("accepted the address %q", entry)
	}
	return ip.Equal(addr)
}

// compareVerdicts compares compiled rules with plainVerdict.
func compareVerdicts(t *testing.T, raw []byte, compiled List, addr netip.Addr, country string, asn uint32, kinds geo.AnonymousKinds) {
	t.Helper()
	viewer := &somebody{addr: addr.Unmap().WithZone("").String(), country: country, asn: asn, kinds: kinds}
	if country == "" {
		viewer.country = "unknown"
	}
	got, err := allowed(compiled, viewer)
	if err != nil {
		t.Fatalf("allow = %v", err)
	}
	want, rules := plainVerdict(t, raw, net.IP(addr.AsSlice()), viewer)
	if got != want || len(compiled) != rules {
		t.Fatalf("%d rules %s allow %+v = %t, want %d and %t", len(compiled), raw, viewer, got, rules, want)
	}
}

// rulesOf makes rules that hit each other: a few networks, countries and numbers, by
// chance, so that first matches, near misses and no matches all occur.
func rulesOf(random *rand.Rand) []byte {
	networks := []string{
		"203.0.113.7", "203.0.113.0/24", "203.0.113.7/25", "::ffff:203.0.113.0/121", "0.0.0.0/0", "2001:db8::/32",
		"2001:db8::1", "::/0", "::ffff:0:0/96", "198.51.100.0/31", "::ffff:198.51.100.1", "128.0.0.0/1",
	}
	countries := []string{"GB", "gb", "US", "De", "XK"}
	kinds := []string{"vpn", "hosting", "public_proxy", "residential_proxy", "tor"}
	var rules []map[string]any
	for range random.IntN(6) {
		rule := map[string]any{"action": []string{"allow", "block"}[random.IntN(2)]}
		switch random.IntN(9) {
		case 0:
			rule["type"], rule["ip"] = "any", "garbage"
		case 1, 2:
			rule["type"], rule["ip"] = "ip.src", some(random, networks)
		case 3, 4:
			rule["type"], rule["asn"], rule["country"] = "ip.geoip.asnum", some(random, testSystems[1:]), "ignored"
		case 5:
			rule["type"] = "ip.anonymous"
		case 6:
			rule["type"], rule["kinds"] = "ip.anonymous", some(random, kinds)
		default:
			rule["type"], rule["country"], rule["ip"] = "ip.geoip.country", some(random, countries), 1
		}
		rules = append(rules, rule)
	}
	if rules == nil {
		return []byte("[]")
	}
	return must(json.Marshal(rules))
}

func some[T any](random *rand.Rand, from []T) (picked []T) {
	for range 1 + random.IntN(3) {
		picked = append(picked, from[random.IntN(len(from))])
	}
	return picked
}

// testSystems are numbers of autonomous systems. The first one means unknown.
var testSystems = []uint32{0, 1, 64496, 64500, 4294967295}

var testViewers = []string{
	"203.0.113.7", "203.0.113.127", "203.0.113.128", "203.0.114.0", "198.51.100.0", "198.51.100.1", "127.255.255.255",
	"128.0.0.0", "0.0.0.0", "255.255.255.255", "2001:db8::1", "2001:db8:ffff::", "2001:db9::", "::", "::1", "::ffff:203.0.113.7",
}

// FuzzRules checks that accepted rules have the result of the plain reading, for
// clients at the edges of their networks too, and that no list has more than 64.
func FuzzRules(f *testing.F) {
	for _, lists := range badRules {
		for _, raw := range lists {
			f.Add([]byte(raw), []byte{203, 0, 113, 7}, "GB", uint32(64496), uint8(1))
		}
	}
	for _, tc := range verdicts {
		f.Add([]byte(tc.rules), []byte(tc.addr), tc.country, uint32(0), uint8(0))
	}
	for _, tc := range networkVerdicts {
		f.Add([]byte(tc.rules), []byte{}, "", tc.asn, uint8(kindsOf(tc.kinds)))
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 600 {
		country := []string{"", "GB", "US", "DE", "FR"}[random.IntN(5)]
		f.Add(rulesOf(random), netip.MustParseAddr("2001:db8::1").AsSlice(), country, testSystems[random.IntN(len(testSystems))], uint8(random.IntN(64)))
	}
	f.Fuzz(func(t *testing.T, raw, addr []byte, country string, asn uint32, anonymous uint8) {
		kinds := geo.AnonymousKinds(anonymous) & geo.AnyAnonymous
		before := bytes.Clone(raw)
		compiled, err := Compile(raw)
		if diff := cmp.Diff(before, raw); diff != "" {
			t.Fatalf("Compile changed its input: %s", diff)
		}
		if err != nil {
			if compiled != nil {
				t.Fatalf("Compile(%q) returned rules with an error", raw)
			}
			return
		}
		if raw == nil {
			return
		}
		if len(compiled) > 64 {
			t.Fatalf("accepted %d rules", len(compiled))
		}
		code, _ := geo.ParseCountryCode(country)
		viewers := testViewers
		if parsed, ok := netip.AddrFromSlice(addr); ok {
			viewers = append([]string{parsed.String()}, viewers...)
		}
		for _, rule := range compiled { // those at the edges of the rules
			for _, prefix := range rule.prefixes {
				viewers = append(slices.Clip(viewers), prefix.Addr().String())
				if previous := prefix.Addr().Prev(); previous.IsValid() {
					viewers = append(viewers, previous.String())
				}
			}
			for _, country := range rule.countries {
				compareVerdicts(t, raw, compiled, netip.MustParseAddr("203.0.113.7"), country.String(), asn, kinds)
			}
			for _, number := range rule.asns {
				compareVerdicts(t, raw, compiled, netip.MustParseAddr("203.0.113.7"), code.String(), number, kinds)
			}
		}
		for _, viewer := range viewers {
			compareVerdicts(t, raw, compiled, netip.MustParseAddr(viewer), code.String(), asn, kinds)
		}
	})
}

// Countries that are no ISO code: patterns, code points that fold to a letter, and
// bytes that differ from a letter by a bit.
var badCountries = []string{"", "USA", "U", "T1", "U ", " US", "\u0130S", "U\u017f", "é", "*", "  ", "[{", "@`"}

// Addresses that one program reads as one host and another as another, or as none.
var badAddresses = []string{
	"", "1.2.3", "010.0.0.1", "0x7f.1", "2130706433", "1.2.3.4/33", "::1/129", "1.2.3.4/08", "1.2.3.4/+8", "1.2.3.4/", "1.2.3.0/255.255.255.0",
	" 1.2.3.4", "1.2.3.4-1.2.3.9", "1.2.3.*", "fe80::1%eth0", "fe80::%eth0/64", "1.2.3.4:443", "[::1]", "localhost", "bad",
	"127.1", "1.2.3.4/-1", "1.2.3.4/24/24", "1.2.3.4 ", "1.2.3.4\n", "1.2.3.256", "1.2.3.4.5", "*", "private_ranges",
	"::1%lo", ":::1", "1::2::3", "12345::", "::ffff:1.2.3", "::ffff:1.2.3.4/129", "\u0661.2.3.4", "1.2.3.4\x00",
}
