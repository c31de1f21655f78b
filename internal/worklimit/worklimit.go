// Package worklimit limits the work that clients can cause before a server knows them.
package worklimit

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/time/rate"
)

const (
	// maxKeys bounds the memory for networks that have spent anything.
	maxKeys = 100_000

	// SiteShare is how many budgets of networks a whole site has. A site with a /48
	// has 256 networks, and an attacker could use one after the other.
	SiteShare = 4
)

// Networks limits the work that the clients of a network may cause before the
// gate knows that they are viewers.
type Networks = Limit[netip.Prefix]

// Limit limits the work that those with one key may cause. It is safe for concurrent
// use.
type Limit[K comparable] struct {
	perSecond rate.Limit // what a key gets back of its budget
	burst     int        // its whole budget
	budgets   *otter.Cache[K, *workBudget]
	Now       func() time.Time // tests set their own
	start     time.Time
}

// workBudget is what those with one key may still cause.
type workBudget struct {
	*rate.Limiter
	last atomic.Int64 // when it was last spent: nanoseconds since the limit's start, on the monotonic clock
}

func NewNetworks(perSecond rate.Limit, burst int) *Networks {
	return New[netip.Prefix](perSecond, burst)
}

func New[K comparable](perSecond rate.Limit, burst int) *Limit[K] {
	return &Limit[K]{
		perSecond: perSecond, burst: burst,
		budgets: otter.Must(&otter.Options[K, *workBudget]{MaximumSize: maxKeys}),
		Now:     time.Now,
		start:   time.Now(),
	}
}

// Exhausted reports whether the budget of the client's network or site is spent.
func (l *Limit[K]) Exhausted(client Keys[K]) bool {
	var none K
	return l.exhaustedOf(client.Own) || client.Site != none && l.exhaustedOf(client.Site)
}

func (l *Limit[K]) exhaustedOf(key K) bool {
	budget, spent := l.budgets.GetIfPresent(key)
	return spent && budget.TokensAt(l.Now()) < 1
}

// Spend counts against the budgets of the client's network and site, and reports whether both
// had something left.
func (l *Limit[K]) Spend(client Keys[K]) (left bool) {
	var none K
	left = l.spendOf(client.Own, 1)
	if client.Site != none {
		left = l.spendOf(client.Site, SiteShare) && left
	}
	return left
}

func (l *Limit[K]) spendOf(key K, share int) (left bool) {
	budget, _ := l.budgets.ComputeIfAbsent(key, func() (*workBudget, bool) {
		return &workBudget{Limiter: rate.NewLimiter(l.perSecond*rate.Limit(share), l.burst*share)}, false
	})
	now := l.Now()
	budget.last.Store(int64(now.Sub(l.start)))
	return budget.AllowN(now, 1)
}

// SpentWithin reports whether the client's network has spent anything lately. The
// monotonic clock decides: after the wall clock is set back, nothing would be long
// ago until the clock has caught up.
func (l *Limit[K]) SpentWithin(client Keys[K], lately time.Duration) bool {
	budget, spent := l.budgets.GetIfPresent(client.Own)
	return spent && l.Now().Sub(l.start)-time.Duration(budget.last.Load()) < lately
}

// Keys are the keys of a client's budgets: its own, and that of the site to which it
// belongs with others, the zero value for none.
type Keys[K comparable] struct{ Own, Site K }

// ClientNetworks are the networks of a client that have a budget. Clients without an address
// share one. Own is a /24 in IPv4, a /56 in IPv6: one client, or one company. Site is the /48
// above it, which is the most that one site gets (RFC 6177); zero in IPv4.
type ClientNetworks = Keys[netip.Prefix]

// NetworksOf returns the networks of an address. known is false if the client has none.
func NetworksOf(address netip.Addr, known bool) (networks ClientNetworks) {
	const v4, v6, v6Site = 24, 56, 48
	switch {
	case !known:
	case address.Is4():
		networks.Own, _ = address.Prefix(v4)
	default:
		networks.Own, _ = address.Prefix(v6)
		networks.Site, _ = address.Prefix(v6Site)
	}
	return networks
}
