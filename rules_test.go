package signedplayback

import (
	"bytes"
	"encoding/json"
	"errors"
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
// one such rule makes the whole token invalid.
var badRules = []struct{ name, rules, want string }{
	{"J35 null", `null`, "not an array"},
	{"J35 object", `{"type":"any","action":"block"}`, "not an array"},
	{"J35 string", `"block"`, "not an array"},
	{"J35 number", `0`, "not an array"},
	{"J35 false", `false`, "not an array"},
	{"J35 nothing", ``, "json"},
	{"J35 cut", `[{"type":"any","action":"block"}`, "json"},
	{"J35 two values", `[] []`, "json"},
	{"J35 trailing comma", `[{"type":"any","action":"block",}]`, "json"},
	{"J35 rule is null", `[null]`, "rule 1: it is not an object"},
	{"J35 rule is an array", `[[]]`, "rule 1: it is not an object"},
	{"J35 rule is a string", `["block"]`, "rule 1: it is not an object"},
	{"J35 second rule is null", `[{"type":"any","action":"allow"},null]`, "rule 2: it is not an object"},
	{"J35 rule behind one that decides", `[{"type":"any","action":"block"},{"type":"any"}]`, "rule 2: action is missing"},
	{"J35 65 rules", manyRules(65), "more than 64"},
	{"J35 10,000 rules", manyRules(10_000), "more than 64"},

	{"J35 empty object", `[{}]`, "action is missing"},
	{"J35 action missing", `[{"type":"any"}]`, "action is missing"},
	{"J35 action unknown", `[{"type":"any","action":"deny"}]`, `action is "deny"`},
	{"J35 action in capitals", `[{"type":"any","action":"Block"}]`, `action is "Block"`},
	{"J35 action with a space", `[{"type":"any","action":"block "}]`, `action is "block "`},
	{"J35 action escaped", `[{"type":"any","action":"\u0062lock"}]`, `action is "\u0062lock"`},
	{"J35 action empty", `[{"type":"any","action":""}]`, `action is ""`},
	{"J35 action null", `[{"type":"any","action":null}]`, `action is null`},
	{"J35 action true", `[{"type":"any","action":true}]`, `action is true`},
	{"J35 action is a list", `[{"type":"any","action":["block"]}]`, `action is ["block"]`},
	{"J35 action twice", `[{"type":"any","action":"allow","action":"block"}]`, "duplicate"},
	{"J35 action twice, once escaped", `[{"type":"any","action":"allow","\u0061ction":"block"}]`, "duplicate"},
	{"J35 name of action in capitals", `[{"type":"any","Action":"block"}]`, "action is missing"},

	{"J35 type missing", `[{"action":"block"}]`, "type is missing"},
	{"J35 type unknown", `[{"type":"ip.geoip.asnum","action":"block"}]`, `type is "ip.geoip.asnum"`},
	{"J35 type in capitals", `[{"type":"ANY","action":"block"}]`, `type is "ANY"`},
	{"J35 type almost", `[{"type":"ip.src ","action":"block","ip":["203.0.113.7"]}]`, `type is "ip.src "`},
	{"J35 type null", `[{"type":null,"action":"block"}]`, `type is null`},
	{"J35 type number", `[{"type":1,"action":"block"}]`, `type is 1`},
	{"J35 type unknown and long", `[{"type":"` + strings.Repeat("x", 1000) + `","action":"block"}]`, strings.Repeat("x", 39) + "…"},

	{"J35 country missing", `[{"type":"ip.geoip.country","action":"block"}]`, "country is missing"},
	{"J35 country misspelt", `[{"type":"ip.geoip.country","action":"block","coutry":["US"]}]`, "country is missing"},
	{"J35 country empty", `[{"type":"ip.geoip.country","action":"block","country":[]}]`, "country is []"},
	{"J35 country is a string", `[{"type":"ip.geoip.country","action":"block","country":"US"}]`, `country is "US"`},
	{"J35 country null", `[{"type":"ip.geoip.country","action":"block","country":null}]`, "country is null"},
	{"J35 country is an object", `[{"type":"ip.geoip.country","action":"block","country":{"US":1}}]`, `country is {"US":1}`},
	{"J35 countries elsewhere", `[{"type":"ip.geoip.country","action":"block","ip":["203.0.113.7"]}]`, "country is missing"},
	{"N8 a null among countries", `[{"type":"ip.geoip.country","action":"block","country":["US",null]}]`, "country holds null"},
	{"N8 a number among countries", `[{"type":"ip.geoip.country","action":"block","country":[840]}]`, "country holds 840"},
	{"N8 a list among countries", `[{"type":"ip.geoip.country","action":"block","country":[["US"]]}]`, `country holds ["US"]`},
	{"N8 empty country", `[{"type":"ip.geoip.country","action":"block","country":[""]}]`, `"" is not an ISO`},
	{"N8 alpha-3", `[{"type":"ip.geoip.country","action":"block","country":["USA"]}]`, `"USA"`},
	{"N8 one letter", `[{"type":"ip.geoip.country","action":"block","country":["U"]}]`, `"U"`},
	{"N8 Tor", `[{"type":"ip.geoip.country","action":"block","country":["T1"]}]`, `"T1"`},
	{"N8 a code with a space", `[{"type":"ip.geoip.country","action":"block","country":["U "]}]`, `"U "`},
	{"N8 a code and a space", `[{"type":"ip.geoip.country","action":"block","country":[" US"]}]`, `" US"`},
	{"N8 dotted capital I, which folds to i", `[{"type":"ip.geoip.country","action":"block","country":["\u0130S"]}]`, "\u0130S"},
	{"N8 pattern", `[{"type":"ip.geoip.country","action":"block","country":["*"]}]`, `"*"`},
	{"N8 spaces", `[{"type":"ip.geoip.country","action":"block","country":["  "]}]`, `"  "`},
	{"N8 punctuation that differs from a letter by a bit", `[{"type":"ip.geoip.country","action":"block","country":["[{"]}]`, `"[{"`},
	{"N8 at signs", `[{"type":"ip.geoip.country","action":"block","country":["@` + "`" + `"]}]`, `"@`},
	{"N8 U and long s, which folds to S", "[{\"type\":\"ip.geoip.country\",\"action\":\"block\",\"country\":[\"U\u017f\"]}]", "U\u017f"},
	{"N8 U and long s, escaped", `[{"type":"ip.geoip.country","action":"block","country":["U\u017f"]}]`, "U\u017f"},
	{"N8 one letter of two bytes", `[{"type":"ip.geoip.country","action":"block","country":["é"]}]`, "é"},
	{"N8 bad behind good", `[{"type":"ip.geoip.country","action":"block","country":["US","DEU"]}]`, `"DEU"`},

	{"J35 ip missing", `[{"type":"ip.src","action":"block"}]`, "ip is missing"},
	{"J35 ip empty", `[{"type":"ip.src","action":"block","ip":[]}]`, "ip is []"},
	{"J35 ip is a string", `[{"type":"ip.src","action":"block","ip":"203.0.113.7"}]`, `ip is "203.0.113.7"`},
	{"J35 ip null", `[{"type":"ip.src","action":"block","ip":null}]`, "ip is null"},
	{"J35 addresses elsewhere", `[{"type":"ip.src","action":"block","country":["US"]}]`, "ip is missing"},
	{"N6 a number among addresses", `[{"type":"ip.src","action":"block","ip":[3405803783]}]`, "ip holds 3405803783"},
	{"N6 a null among addresses", `[{"type":"ip.src","action":"block","ip":[null]}]`, "ip holds null"},
	{"N6 empty address", `[{"type":"ip.src","action":"block","ip":[""]}]`, `""`},
	{"N6 three parts", `[{"type":"ip.src","action":"block","ip":["1.2.3"]}]`, `"1.2.3"`},
	{"N6 octal", `[{"type":"ip.src","action":"block","ip":["010.0.0.1"]}]`, `"010.0.0.1"`},
	{"N6 hexadecimal", `[{"type":"ip.src","action":"block","ip":["0x7f.1"]}]`, `"0x7f.1"`},
	{"N6 one number", `[{"type":"ip.src","action":"block","ip":["2130706433"]}]`, `"2130706433"`},
	{"N6 prefix too long", `[{"type":"ip.src","action":"block","ip":["1.2.3.4/33"]}]`, `"1.2.3.4/33"`},
	{"N6 IPv6 prefix too long", `[{"type":"ip.src","action":"block","ip":["::1/129"]}]`, `"::1/129"`},
	{"N6 prefix with a leading zero", `[{"type":"ip.src","action":"block","ip":["1.2.3.4/08"]}]`, `"1.2.3.4/08"`},
	{"N6 prefix with a sign", `[{"type":"ip.src","action":"block","ip":["1.2.3.4/+8"]}]`, `"1.2.3.4/+8"`},
	{"N6 prefix missing", `[{"type":"ip.src","action":"block","ip":["1.2.3.4/"]}]`, `"1.2.3.4/"`},
	{"N6 netmask", `[{"type":"ip.src","action":"block","ip":["1.2.3.0/255.255.255.0"]}]`, `"1.2.3.0/255.255.255.0"`},
	{"N6 space in front", `[{"type":"ip.src","action":"block","ip":[" 1.2.3.4"]}]`, `" 1.2.3.4"`},
	{"N6 range", `[{"type":"ip.src","action":"block","ip":["1.2.3.4-1.2.3.9"]}]`, `"1.2.3.4-1.2.3.9"`},
	{"N6 wildcard", `[{"type":"ip.src","action":"block","ip":["1.2.3.*"]}]`, `"1.2.3.*"`},
	{"N6 zone", `[{"type":"ip.src","action":"block","ip":["fe80::1%eth0"]}]`, `"fe80::1%eth0"`},
	{"N6 zone in a CIDR", `[{"type":"ip.src","action":"block","ip":["fe80::%eth0/64"]}]`, `"fe80::%eth0/64"`},
	{"N6 port", `[{"type":"ip.src","action":"block","ip":["1.2.3.4:443"]}]`, `"1.2.3.4:443"`},
	{"N6 brackets", `[{"type":"ip.src","action":"block","ip":["[::1]"]}]`, `"[::1]"`},
	{"N6 host name", `[{"type":"ip.src","action":"block","ip":["localhost"]}]`, `"localhost"`},
	{"N6 digits of another script", `[{"type":"ip.src","action":"block","ip":["١.2.3.4"]}]`, `"١.2.3.4"`},
	{"N6 bad behind all of the Internet", `[{"type":"ip.src","action":"allow","ip":["::/0","bad"]}]`, `"bad"`},

	{"J21 a member twice in an irrelevant object", `[{"type":"any","action":"block","note":{"a":1,"a":2}}]`, "duplicate"},
	{"J23 invalid UTF-8", "[{\"type\":\"any\",\"action\":\"block\",\"note\":\"\xff\"}]", "UTF-8"},
	{"J24 deep nesting", strings.Repeat("[", 1000) + strings.Repeat("]", 1000), "deep"},
}

func TestBadRulesMakeTheTokenInvalid(t *testing.T) {
	t.Parallel()
	for _, tc := range badRules {
		t.Run(tc.name, func(t *testing.T) {
			rules, err := compileRules([]byte(tc.rules))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("compileRules(%.100s) = %v, want an error with %s", tc.rules, err, tc.want)
			}
			if rules != nil {
				t.Errorf("compileRules(%.100s) returned %d rules with an error", tc.rules, len(rules))
			}
			if err != nil && len(err.Error()) > 200 {
				t.Errorf("compileRules(%.100s): the error has %d bytes", tc.rules, len(err.Error()))
			}
		})
	}
}

// An address that one program reads as one host and another as another, or as
// none, spoils the token too.
func TestBadAddressesMakeTheTokenInvalid(t *testing.T) {
	t.Parallel()
	for _, address := range []string{
		"127.1", "1.2.3.4/-1", "1.2.3.4/24/24", "1.2.3.4/255.255.255.0", "1.2.3.4 ", "1.2.3.4\n", "1.2.3.256", "1.2.3.4.5", "*", "private_ranges",
		"::1%lo", ":::1", "1::2::3", "12345::", "::ffff:1.2.3", "::ffff:1.2.3.4/129", "\u0661.2.3.4", "1.2.3.4\x00",
	} {
		for _, action := range []string{"allow", "block"} {
			rules := must(json.Marshal([]map[string]any{{"type": "ip.src", "action": action, "ip": []string{"203.0.113.7", address}}}))
			if got, err := compileRules(rules); err == nil || got != nil {
				t.Errorf("N6 compileRules(%s) = %v, %v, want an error", rules, got, err)
			}
		}
	}
}

// somebody is a viewer for the rules, who counts what he is asked for.
type somebody struct {
	addr, country_             string // "" for a refusal
	askedAddress, askedCountry int
}

var (
	errTestAddress = errors.New("no address")
	errTestCountry = errors.New("no country")
)

func (s *somebody) address() (netip.Addr, error) {
	s.askedAddress++
	if s.addr == "" {
		return netip.Addr{}, errTestAddress
	}
	return netip.MustParseAddr(s.addr), nil
}

func (s *somebody) country() (geo.CountryCode, error) {
	s.askedCountry++
	switch s.country_ {
	case "":
		return geo.CountryCode{}, errTestCountry
	case "unknown":
		return geo.CountryCode{}, nil
	}
	code, _ := geo.ParseCountryCode(s.country_)
	return code, nil
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
	name, rules   string
	addr, country string
	want          bool
}{
	{"block countries: a blocked one", blockCountries, "203.0.113.7", "US", false},
	{"block countries: another blocked one", blockCountries, "203.0.113.7", "DE", false},
	{"block countries: the last blocked one", blockCountries, "203.0.113.7", "MX", false},
	{"block countries: any other", blockCountries, "203.0.113.7", "GB", true},
	{"block countries: unknown", blockCountries, "203.0.113.7", "unknown", true},
	{"block countries: no address needed", blockCountries, "", "GB", true},

	{"allow some: country", allowCountriesAndNetworks, "203.0.113.7", "US", true},
	{"allow some: other country", allowCountriesAndNetworks, "203.0.113.7", "MX", true},
	{"allow some: neither", allowCountriesAndNetworks, "203.0.113.7", "GB", false},
	{"allow some: network", allowCountriesAndNetworks, "93.184.216.34", "GB", true},
	{"allow some: network's first address", allowCountriesAndNetworks, "93.184.216.0", "GB", true},
	{"allow some: network's last address", allowCountriesAndNetworks, "93.184.216.255", "GB", true},
	{"allow some: beside the network", allowCountriesAndNetworks, "93.184.217.0", "GB", false},
	{"allow some: IPv6 network", allowCountriesAndNetworks, "2400:cb00:1::1", "GB", true},
	{"allow some: beside the IPv6 network", allowCountriesAndNetworks, "2400:cb01::1", "GB", false},
	{"allow some: unknown country", allowCountriesAndNetworks, "203.0.113.7", "unknown", false},
	{"allow some: unknown country, network", allowCountriesAndNetworks, "93.184.216.34", "unknown", true},

	{"no rules", `[]`, "", "", true},
	{"any, block", `[{"type":"any","action":"block"}]`, "", "", false},
	{"any, allow", `[{"type":"any","action":"allow"}]`, "", "", true},
	{"64 rules", manyRules(64), "", "", false},
	{"first match allows", `[{"type":"ip.src","ip":["203.0.113.7"],"action":"allow"},{"type":"ip.src","ip":["203.0.113.0/24"],"action":"block"}]`, "203.0.113.7", "", true},
	{"first match blocks", `[{"type":"ip.src","ip":["203.0.113.7"],"action":"block"},{"type":"ip.src","ip":["203.0.113.0/24"],"action":"allow"}]`, "203.0.113.7", "", false},
	{"second rule matches", `[{"type":"ip.src","ip":["203.0.113.7"],"action":"allow"},{"type":"ip.src","ip":["203.0.113.0/24"],"action":"block"}]`, "203.0.113.8", "", false},
	{"no match allows", `[{"type":"ip.src","ip":["203.0.113.7"],"action":"block"}]`, "198.51.100.1", "", true},
	{"no match allows, though all rules allow", `[{"type":"ip.src","ip":["203.0.113.7"],"action":"allow"}]`, "198.51.100.1", "", true},

	{"N8 country in lower case", `[{"type":"ip.geoip.country","action":"block","country":["gb"]}]`, "", "GB", false},
	{"N8 country in both cases", `[{"type":"ip.geoip.country","action":"block","country":["gB"]}]`, "", "GB", false},
	{"N8 country escaped", `[{"type":"ip.geoip.country","action":"block","country":["\u0047B"]}]`, "", "GB", false},
	{"N8 unassigned code", `[{"type":"ip.geoip.country","action":"block","country":["XK"]}]`, "", "XK", false},
	{"N8 unknown country matches no allow rule", `[{"type":"ip.geoip.country","action":"allow","country":["GB"]},{"type":"any","action":"block"}]`, "", "unknown", false},

	{"address", `[{"type":"ip.src","action":"block","ip":["203.0.113.7"]}]`, "203.0.113.7", "", false},
	{"address, not another", `[{"type":"ip.src","action":"block","ip":["203.0.113.7"]}]`, "203.0.113.8", "", true},
	{"CIDR with host bits", `[{"type":"ip.src","action":"block","ip":["203.0.113.7/24"]}]`, "203.0.113.200", "", false},
	{"CIDR of one address", `[{"type":"ip.src","action":"block","ip":["203.0.113.7/32"]}]`, "203.0.113.8", "", true},
	{"all of IPv4", `[{"type":"ip.src","action":"block","ip":["0.0.0.0/0"]}]`, "203.0.113.7", "", false},
	{"all of IPv4 is none of IPv6", `[{"type":"ip.src","action":"block","ip":["0.0.0.0/0"]}]`, "2001:db8::1", "", true},
	{"all of IPv6 is none of IPv4", `[{"type":"ip.src","action":"block","ip":["::/0"]}]`, "203.0.113.7", "", true},
	{"IPv6 address, spelt otherwise", `[{"type":"ip.src","action":"block","ip":["2001:0DB8:0:0::1"]}]`, "2001:db8::1", "", false},
	{"N4 mapped address", `[{"type":"ip.src","action":"block","ip":["::ffff:203.0.113.7"]}]`, "203.0.113.7", "", false},
	{"N4 mapped address in hexadecimal", `[{"type":"ip.src","action":"block","ip":["::ffff:cb00:7107"]}]`, "203.0.113.7", "", false},
	{"N4 mapped CIDR", `[{"type":"ip.src","action":"block","ip":["::ffff:203.0.113.0/120"]}]`, "203.0.113.200", "", false},
	{"N4 mapped CIDR, beside it", `[{"type":"ip.src","action":"block","ip":["::ffff:203.0.113.0/120"]}]`, "203.0.114.0", "", true},
	{"N4 mapped CIDR of all IPv4", `[{"type":"ip.src","action":"block","ip":["::ffff:0:0/96"]}]`, "203.0.113.7", "", false},
	{"N4 CIDR around the mapped addresses is IPv6", `[{"type":"ip.src","action":"block","ip":["::ffff:203.0.113.0/64"]}]`, "203.0.113.7", "", true},
	{"several addresses", `[{"type":"ip.src","action":"block","ip":["198.51.100.1","2001:db8::/32","203.0.113.7"]}]`, "203.0.113.7", "", false},

	// Members that a rule's type has no use for are ignored, whatever they hold.
	{"addresses at a country rule", `[{"type":"ip.geoip.country","action":"block","country":["GB"],"ip":["bad"]}]`, "", "GB", false},
	{"countries at an address rule", `[{"type":"ip.src","action":"block","ip":["203.0.113.7"],"country":17}]`, "203.0.113.7", "", false},
	{"both at a rule for any", `[{"type":"any","action":"block","country":null,"ip":{"a":[]}}]`, "", "", false},
	{"members that nobody knows", `[{"id":7,"TYPE":"any","Action":"allow","type":"any","action":"block","":{}}]`, "", "", false},
	{"white space", " [ { \"type\" : \"any\" ,\n\t\"action\" : \"block\" } ]\r\n", "", "", false},
	{"names escaped", `[{"\u0074ype":"any","action":"block"}]`, "", "", false},
}

func TestRules(t *testing.T) {
	t.Parallel()
	for _, tc := range verdicts {
		t.Run(tc.name, func(t *testing.T) {
			rules, err := compileRules([]byte(tc.rules))
			if err != nil {
				t.Fatalf("compileRules(%s) = %v", tc.rules, err)
			}
			got, err := allowed(rules, &somebody{addr: tc.addr, country_: tc.country})
			if err != nil || got != tc.want {
				t.Errorf("rules %s allow %q from %q = %t, %v, want %t", tc.rules, tc.addr, tc.country, got, err, tc.want)
			}
		})
	}
}

// allowed evaluates rules as the gate does.
func allowed(rules accessRules, v *somebody) (bool, error) {
	matched, err := rules.match(v)
	return err == nil && rules.allow(matched), err
}

func TestTokenWithoutRules(t *testing.T) {
	t.Parallel()
	rules, err := compileRules(nil)
	if err != nil || rules != nil {
		t.Fatalf("compileRules(nil) = %v, %v, want none", rules, err)
	}
	viewer := new(somebody)
	if ok, err := allowed(rules, viewer); !ok || err != nil {
		t.Errorf("no rules allow = %t, %v, want true", ok, err)
	}
	if viewer.askedAddress+viewer.askedCountry > 0 {
		t.Errorf("no rules asked for address or country")
	}
}

// What a viewer is, is looked up when a rule needs it and not before: a token
// whose rules decide earlier plays where address or country cannot be told.
// And one that needs them does not play.
func TestRulesAskForWhatTheyNeed(t *testing.T) {
	t.Parallel()
	const addressThenCountry = `[
		{"type":"ip.src","ip":["203.0.113.7"],"action":"allow"},
		{"type":"ip.geoip.country","country":["GB"],"action":"allow"},
		{"type":"ip.src","ip":["198.51.100.1"],"action":"allow"},
		{"type":"any","action":"block"}
	]`
	for _, tc := range []struct {
		name, rules                string
		addr, country              string
		want                       bool
		wantErr                    error
		askedAddress, askedCountry int
	}{
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
			viewer := &somebody{addr: tc.addr, country_: tc.country}
			got, err := allowed(must(compileRules([]byte(tc.rules))), viewer)
			if got != tc.want || !errors.Is(err, tc.wantErr) {
				t.Errorf("allow = %t, %v, want %t, %v", got, err, tc.want, tc.wantErr)
			}
			if viewer.askedAddress != tc.askedAddress || viewer.askedCountry != tc.askedCountry {
				t.Errorf("asked %d times for the address and %d for the country, want %d and %d",
					viewer.askedAddress, viewer.askedCountry, tc.askedAddress, tc.askedCountry)
			}
		})
	}
}

// obviousVerdict evaluates rules that compileRules has accepted, as slowly and
// as plainly as they can be, with encoding/json and package net instead of
// what the gate uses.
func obviousVerdict(t *testing.T, raw []byte, addr net.IP, country string) (allowed bool, rules int) {
	t.Helper()
	var list []map[string]json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		t.Fatalf("accepted %q, which encoding/json does not read: %v", raw, err)
	}
	for i, rule := range list {
		var matches bool
		switch text(t, rule["type"]) {
		case "any":
			matches = true
		case "ip.src":
			for _, entry := range texts(t, rule["ip"]) {
				matches = matches || covers(t, entry, addr)
			}
		case "ip.geoip.country":
			for _, entry := range texts(t, rule["country"]) {
				matches = matches || country != "" && strings.EqualFold(entry, country)
			}
		default:
			t.Fatalf("accepted a rule of type %s", rule["type"])
		}
		if !matches {
			continue
		}
		switch action := text(t, rule["action"]); action {
		case "allow":
			return true, len(list)
		case "block":
			return false, len(list)
		default:
			t.Fatalf("accepted the action %q in rule %d", action, i+1)
		}
	}
	return true, len(list)
}

func text(t *testing.T, raw json.RawMessage) (s string) {
	t.Helper()
	if err := json.Unmarshal(raw, &s); err != nil {
		t.Fatalf("accepted %s where a string must stand: %v", raw, err)
	}
	return s
}

func texts(t *testing.T, raw json.RawMessage) (list []string) {
	t.Helper()
	if err := json.Unmarshal(raw, &list); err != nil || len(list) == 0 {
		t.Fatalf("accepted %s where a list of strings must stand: %v", raw, err)
	}
	return list
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

// compareWithObvious holds the compiled rules against obviousVerdict.
func compareWithObvious(t *testing.T, raw []byte, compiled accessRules, addr netip.Addr, country string) {
	t.Helper()
	viewer := &somebody{addr: addr.Unmap().WithZone("").String(), country_: country}
	if country == "" {
		viewer.country_ = "unknown"
	}
	got, err := allowed(compiled, viewer)
	if err != nil {
		t.Fatalf("allow = %v", err)
	}
	want, rules := obviousVerdict(t, raw, net.IP(addr.AsSlice()), country)
	if got != want || len(compiled) != rules {
		t.Fatalf("%d rules %s allow %s from %q = %t, want %d and %t", len(compiled), raw, addr, country, got, rules, want)
	}
}

// rulesOf makes rules that hit each other: a few networks and countries, by
// chance, so that first matches, near misses and no matches all occur.
func rulesOf(random *rand.Rand) []byte {
	networks := []string{
		"203.0.113.7", "203.0.113.0/24", "203.0.113.7/25", "::ffff:203.0.113.0/121", "0.0.0.0/0", "2001:db8::/32",
		"2001:db8::1", "::/0", "::ffff:0:0/96", "198.51.100.0/31", "::ffff:198.51.100.1", "128.0.0.0/1",
	}
	countries := []string{"GB", "gb", "US", "De", "XK"}
	some := func(from []string) (picked []string) {
		for range 1 + random.IntN(3) {
			picked = append(picked, from[random.IntN(len(from))])
		}
		return picked
	}
	var rules []map[string]any
	for range random.IntN(6) {
		rule := map[string]any{"action": []string{"allow", "block"}[random.IntN(2)]}
		switch random.IntN(5) {
		case 0:
			rule["type"], rule["ip"] = "any", "garbage"
		case 1, 2:
			rule["type"], rule["ip"] = "ip.src", some(networks)
		default:
			rule["type"], rule["country"], rule["ip"] = "ip.geoip.country", some(countries), 1
		}
		rules = append(rules, rule)
	}
	if rules == nil {
		return []byte("[]")
	}
	return must(json.Marshal(rules))
}

var testViewers = []string{
	"203.0.113.7", "203.0.113.127", "203.0.113.128", "203.0.114.0", "198.51.100.0", "198.51.100.1", "127.255.255.255",
	"128.0.0.0", "0.0.0.0", "255.255.255.255", "2001:db8::1", "2001:db8:ffff::", "2001:db9::", "::", "::1", "::ffff:203.0.113.7",
}

func TestRulesAgainstTheObvious(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	seen := make(map[bool]int)
	for range 3000 {
		raw := rulesOf(random)
		compiled, err := compileRules(raw)
		if err != nil {
			t.Fatalf("compileRules(%s) = %v", raw, err)
		}
		addr := netip.MustParseAddr(testViewers[random.IntN(len(testViewers))])
		country := []string{"", "GB", "US", "DE", "FR"}[random.IntN(5)]
		compareWithObvious(t, raw, compiled, addr, country)
		allowed, _ := obviousVerdict(t, raw, net.IP(addr.AsSlice()), country)
		seen[allowed]++
	}
	if seen[true] < 500 || seen[false] < 500 {
		t.Errorf("%d viewers were allowed and %d blocked: the test does not test both", seen[true], seen[false])
	}
}

// FuzzRules holds that rules which are accepted mean what the obvious reading
// of them says, and that nobody gets more than 64 of them accepted.
func FuzzRules(f *testing.F) {
	for _, tc := range badRules {
		f.Add([]byte(tc.rules), []byte{203, 0, 113, 7}, "GB")
	}
	for _, tc := range verdicts {
		f.Add([]byte(tc.rules), []byte(tc.addr), tc.country)
	}
	random := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		f.Add(rulesOf(random), netip.MustParseAddr("2001:db8::1").AsSlice(), "DE")
	}
	f.Fuzz(func(t *testing.T, raw, addr []byte, country string) {
		before := bytes.Clone(raw)
		compiled, err := compileRules(raw)
		if diff := cmp.Diff(before, raw); diff != "" {
			t.Fatalf("compileRules changed its input: %s", diff)
		}
		if err != nil {
			if compiled != nil {
				t.Fatalf("compileRules(%q) returned rules with an error", raw)
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
				compareWithObvious(t, raw, compiled, netip.MustParseAddr("203.0.113.7"), country.String())
			}
		}
		for _, viewer := range viewers {
			compareWithObvious(t, raw, compiled, netip.MustParseAddr(viewer), code.String())
		}
	})
}
