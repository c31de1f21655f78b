package accessrules

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// ParseWords reads the words of a rule in a config: `block ip.src 192.0.2.0/24`. The values belong
// to its type.
func ParseWords(action string, words []string) (rule token.AccessRule, err error) {
	if len(words) == 0 {
		return rule, fmt.Errorf("%q: want allow or block, a type and its values, like `block ip.src 192.0.2.0/24`", action)
	}
	rule.Action, rule.Type = action, words[0]
	values := words[1:]
	if needed := []string{"ip.src", "ip.geoip.country", "ip.geoip.asnum"}; len(values) == 0 && slices.Contains(needed, rule.Type) {
		return rule, fmt.Errorf("%s needs at least one value", rule.Type)
	}
	switch rule.Type {
	case "ip.src":
		rule.IP = values
	case "ip.geoip.country":
		rule.Country = values
	case "ip.geoip.asnum":
		for _, value := range values {
			number, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return rule, fmt.Errorf("ip.geoip.asnum %q: want numbers like 64500", value)
			}
			rule.ASN = append(rule.ASN, uint32(number))
		}
	case "ip.anonymous":
		if len(values) > 0 {
			rule.Kinds = values
		}
	case "any":
		if len(values) > 0 {
			return rule, fmt.Errorf("any takes no values, not %q", values)
		}
	}
	return rule, nil
}
