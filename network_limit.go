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
// gate knows that they are viewers.
type networkLimit = workLimit[netip.Prefix]

// workLimit limits the work that those with one key may cause. It is safe for concurrent
// use.
type workLimit[K comparable] struct {
	perSecond rate.Limit // what a key gets back of its budget
	burst     int        // its whole budget
	budgets   *otter.Cache[K, *workBudget]
	now       func() time.Time // tests set their own
	start     time.Time
}

// workBudget is what those with one key may still cause.
type workBudget struct {
	*rate.Limiter
	last atomic.Int64 // when it was last spent: nanoseconds since the limit's start, on the monotonic clock
}

func newNetworkLimit(perSecond rate.Limit, burst int) *networkLimit {
	return newWorkLimit[netip.Prefix](perSecond, burst)
}

func newWorkLimit[K comparable](perSecond rate.Limit, burst int) *workLimit[K] {
	return &workLimit[K]{
		perSecond: perSecond, burst: burst,
		budgets: otter.Must(&otter.Options[K, *workBudget]{MaximumSize: maxLimitedNetworks}),
		now:     time.Now,
		start:   time.Now(),
	}
}

// exhausted reports whether the budget of the client's network or site is spent.
func (l *workLimit[K]) exhausted(client budgetKeys[K]) bool {
	var none K
	return l.exhaustedOf(client.own) || client.site != none && l.exhaustedOf(client.site)
}

func (l *workLimit[K]) exhaustedOf(key K) bool {
	budget, spent := l.budgets.GetIfPresent(key)
	return spent && budget.TokensAt(l.now()) < 1
}

// spend counts against the budgets of the client's network and site.
func (l *workLimit[K]) spend(client budgetKeys[K]) {
	var none K
	l.spendOf(client.own, 1)
	if client.site != none {
		l.spendOf(client.site, siteShare)
	}
}

func (l *workLimit[K]) spendOf(key K, share int) {
	budget, _ := l.budgets.ComputeIfAbsent(key, func() (*workBudget, bool) {
		return &workBudget{Limiter: rate.NewLimiter(l.perSecond*rate.Limit(share), l.burst*share)}, false
	})
	now := l.now()
	budget.last.Store(int64(now.Sub(l.start)))
	budget.AllowN(now, 1)
}

// spentWithin reports whether the client's network has spent anything lately. The
// monotonic clock decides: after the wall clock is set back, nothing would be long
// ago until the clock has caught up.
func (l *workLimit[K]) spentWithin(client budgetKeys[K], lately time.Duration) bool {
	budget, spent := l.budgets.GetIfPresent(client.own)
	return spent && l.now().Sub(l.start)-time.Duration(budget.last.Load()) < lately
}

// budgetKeys are the keys of a client's budgets: its own, and that of the site to which it
// belongs with others, the zero value for none.
type budgetKeys[K comparable] struct{ own, site K }

// clientNetworks are the networks of a client that have a budget. Clients without an address
// share one. Own is a /24 in IPv4, a /56 in IPv6: one client, or one company. Site is the /48
// above it, which is the most that one site gets (RFC 6177); zero in IPv4.
type clientNetworks = budgetKeys[netip.Prefix]

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
