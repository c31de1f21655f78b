package signedplayback

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/accessrules"
	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
)

// checkOperatorRules evaluates the operator's access rules.
func checkOperatorRules(d *decision) error {
	return d.evaluate(d.settings.rules, errOperatorRule)
}

// checkRules evaluates the access rules of the token.
func checkRules(d *decision) error {
	if d.verified == nil {
		return nil
	}
	return d.evaluate(d.verified.Rules, errRuleBlocked)
}

// evaluate refuses a viewer whom access rules block.
func (d *decision) evaluate(rules accessrules.List, blocked error) (err error) {
	if d.matchedRule, err = rules.Match(d); err != nil {
		return err
	}
	if !rules.Allows(d.matchedRule) {
		return refusal.RuleBlocked.Because(blocked)
	}
	return nil
}

// clientLocation caches the client's address and the facts about it, looked up on
// first use.
type clientLocation struct {
	addr       netip.Addr // valid once it has been looked up
	facts      geo.Facts
	factsKnown bool
}

var (
	errOperatorRule = errors.New("an access rule of the operator blocks the viewer")
	errRuleBlocked  = errors.New("an access rule of the token blocks the viewer")
	errClientIP     = errors.New("an access rule needs the viewer's address, which is unknown")
	errTooEarly     = errors.New("an access rule needs the viewer's address, which the TLS handshake has yet to confirm")
)

// Address implements accessrules.Viewer. Caddy has determined the address, so
// trusted_proxies decides whose headers count.
func (d *decision) Address() (netip.Addr, error) {
	if d.client.addr.IsValid() {
		return d.client.addr, nil
	}
	// Until the handshake is finished, the address may be spoofed and the
	// request replayed (RFC 8470). Caddy's own matchers refuse it as well.
	if tls := d.request.TLS; tls != nil && !tls.HandshakeComplete {
		return netip.Addr{}, refusal.TooEarly.Because(errTooEarly)
	}
	addr, ok := clientAddress(d.request)
	if !ok {
		return netip.Addr{}, refusal.ClientIPUnknown.Because(errClientIP)
	}
	d.client.addr = addr
	return addr, nil
}

// clientAddress returns the client's address as Caddy has determined it. An
// IPv4-mapped IPv6 address becomes IPv4 and a zone is dropped, so that every
// IPv4 rule sees its viewers.
func clientAddress(r *http.Request) (addr netip.Addr, ok bool) {
	text, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	addr, err := netip.ParseAddr(text)
	return addr.Unmap().WithZone(""), err == nil
}

// Facts implements accessrules.Viewer.
func (d *decision) Facts(needed geo.Fact) (geo.Facts, error) {
	if !d.app.geo.Has(needed) {
		return geo.Facts{}, factUnavailable(needed).Because(fmt.Errorf("an access rule needs %s, which is not set", needed.Option()))
	}
	if !d.client.factsKnown {
		addr, err := d.Address()
		if err != nil {
			return geo.Facts{}, err
		}
		d.client.facts, d.client.factsKnown = d.app.geo.Lookup(addr), true
	}
	if !d.client.facts.Readable(needed) {
		return geo.Facts{}, factUnavailable(needed).Because(fmt.Errorf("an access rule needs the record of the viewer's address in %s, which cannot be read", needed.Option()))
	}
	return d.client.facts, nil
}

// factUnavailable is the reason of a refusal because a rule needs a fact that the
// gate cannot tell.
func factUnavailable(fact geo.Fact) refusal.Reason {
	if fact == geo.Country {
		return refusal.CountryUnavailable
	}
	return refusal.NetworkUnavailable
}

// knownCountry returns the viewer's country for logs, "" if it is unknown. It
// decides nothing.
func (d *decision) knownCountry() string {
	addr, ok := clientAddress(d.request)
	if !ok {
		return ""
	}
	return d.app.geo.Lookup(addr).Country.String()
}
