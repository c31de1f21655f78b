package replay

import (
	"fmt"
	"strings"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/accessrules"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// CountRules says how many access rules a token has.
func CountRules(c token.Claims) string {
	rules, err := accessrules.CompileClaim(c.AccessRules)
	switch {
	case err != nil:
		return "access rules that are not valid"
	case len(rules) == 0:
		return "no access rules"
	case len(rules) == 1:
		return "1 access rule"
	default:
		return fmt.Sprintf("%d access rules", len(rules))
	}
}

// Audience shows the claims that the policy restricts, "" if it restricts
// neither.
func Audience(p token.Policy, c token.Claims) string {
	var details []string
	if len(p.Audience) > 0 {
		details = append(details, fmt.Sprintf("aud %q, and one of %q is required", c.Audience, p.Audience))
	}
	if len(p.Issuer) > 0 {
		details = append(details, fmt.Sprintf("iss %q, and one of %q is required", c.Issuer, p.Issuer))
	}
	return strings.Join(details, "; ")
}

// Dates shows when a token is valid.
func Dates(now time.Time, c token.Claims) string {
	text := "exp " + Date(now, c.ExpiresAt)
	if !c.NotBefore.IsZero() {
		text = "nbf " + Date(now, c.NotBefore) + ", " + text
	}
	return text
}

// Date shows a date with its distance from now.
func Date(now, date time.Time) string {
	shown := date.UTC().Format(time.RFC3339)
	if apart := now.Sub(date).Truncate(time.Second); apart >= 0 {
		return fmt.Sprintf("%s, %s ago", shown, InWords(apart))
	}
	return fmt.Sprintf("%s, in %s", shown, InWords(date.Sub(now).Truncate(time.Second)))
}
