package signedplayback

import (
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/time/rate"
)

const (
	// maxLimitedNetworks bounds the memory for networks that have spent anything.
	maxLimitedNetworks = 100_000

	// siteShare is how many budgets of networks a whole site has. A site with a /48
	// has 256 networks, and an attacker could use one after the other.
	siteShare = 4
)

// networkLimit limits the work that the clients of a network may cause before the
// gate knows that they are viewers. It is safe for concurrent use.
type networkLimit struct {
	perSecond rate.Limit // what a network gets back of its budget
	burst     int        // its whole budget
	budgets   *otter.Cache[netip.Prefix, *networkBudget]
	now       func() time.Time // tests set their own
	start     time.Time
}

// networkBudget is what a network may still cause.
type networkBudget struct {
	*rate.Limiter
	last atomic.Int64 // when it was last spent: nanoseconds since the limit's start, on the monotonic clock
}

func newNetworkLimit(perSecond rate.Limit, burst int) *networkLimit {
	return &networkLimit{
		perSecond: perSecond, burst: burst,
		budgets: otter.Must(&otter.Options[netip.Prefix, *networkBudget]{MaximumSize: maxLimitedNetworks}),
		now:     time.Now,
		start:   time.Now(),
	}
}

// exhausted reports whether the budget of the client's network or site is spent.
func (l *networkLimit) exhausted(client clientNetworks) bool {
	return l.exhaustedOf(client.own) || client.site.IsValid() && l.exhaustedOf(client.site)
}

func (l *networkLimit) exhaustedOf(network netip.Prefix) bool {
	budget, spent := l.budgets.GetIfPresent(network)
	return spent && budget.TokensAt(l.now()) < 1
}

// spend counts against the budgets of the client's network and site.
func (l *networkLimit) spend(client clientNetworks) {
	l.spendOf(client.own, 1)
	if client.site.IsValid() {
		l.spendOf(client.site, siteShare)
	}
}

func (l *networkLimit) spendOf(network netip.Prefix, share int) {
	budget, _ := l.budgets.ComputeIfAbsent(network, func() (*networkBudget, bool) {
		return &networkBudget{Limiter: rate.NewLimiter(l.perSecond*rate.Limit(share), l.burst*share)}, false
	})
	now := l.now()
	budget.last.Store(int64(now.Sub(l.start)))
	budget.AllowN(now, 1)
}

// spentWithin reports whether the client's network has spent anything lately. The
// monotonic clock decides: after the wall clock is set back, nothing would be long
// ago until the clock has caught up.
func (l *networkLimit) spentWithin(client clientNetworks, lately time.Duration) bool {
	budget, spent := l.budgets.GetIfPresent(client.own)
	return spent && l.now().Sub(l.start)-time.Duration(budget.last.Load()) < lately
}

// clientNetworks are the networks of a client that have a budget. Clients without
// an address share one.
type clientNetworks struct {
	own  netip.Prefix // of one client, or one company: a /24 in IPv4, a /56 in IPv6
	site netip.Prefix // the /48 above it, which is the most that one site gets (RFC 6177); zero in IPv4
}

func networksOf(r *http.Request) (networks clientNetworks) {
	const v4, v6, v6Site = 24, 56, 48
	address, ok := clientAddress(r)
	switch {
	case !ok:
	case address.Is4():
		networks.own, _ = address.Prefix(v4)
	default:
		networks.own, _ = address.Prefix(v6)
		networks.site, _ = address.Prefix(v6Site)
	}
	return networks
}
