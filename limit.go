package signedplayback

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/time/rate"
)

const (
	// A client prefix may have this many signatures fail at once, and then so
	// many a second: 25 ms of a processor, and 2.5 in a second. A viewer has
	// none, but a company behind one address may have players with old keys.
	failedBurst = 500
	failedRate  = 50

	// maxFailedPrefixes bounds the memory for prefixes that have failed.
	maxFailedPrefixes = 100_000

	// failedMemory is how long a prefix is known for a signature that failed.
	failedMemory = time.Minute

	// How many requests may wait for their turn: those of clean prefixes, and
	// those of prefixes that have failed lately, which must not fill the queue
	// of the others.
	maxCleanWaiting  = 1024
	maxFailedWaiting = 32

	// maxVerificationWait is how long a request waits for its turn.
	maxVerificationWait = time.Second
)

var (
	errPrefixLimited = errors.New("too many tokens with invalid signatures from this network; try again later")
	errQueueLimited  = errors.New("too many tokens are waiting to be verified; try again in a moment")
)

// verificationLimit keeps the one expensive thing that strangers can ask for,
// the check of a signature, from taking the processor away from viewers. It is
// safe for concurrent use.
type verificationLimit struct {
	turns   chan struct{}
	waiting [2]atomic.Int64 // by whether the prefix has failed lately
	failed  *otter.Cache[netip.Prefix, *failures]
	now     func() time.Time // tests set their own
	began   time.Time
}

// failures are those of one prefix.
type failures struct {
	budget *rate.Limiter
	last   atomic.Int64 // nanoseconds since the limit began, on a clock that nobody sets
}

func newVerificationLimit() *verificationLimit {
	return &verificationLimit{
		turns:  make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
		failed: otter.Must(&otter.Options[netip.Prefix, *failures]{MaximumSize: maxFailedPrefixes}),
		now:    time.Now,
		began:  time.Now(),
	}
}

// enter waits for a turn. The caller must call leave if there is no error.
// Errors are refusals.
func (l *verificationLimit) enter(ctx context.Context, client netip.Prefix) error {
	class, most := 0, int64(maxCleanWaiting)
	if failed, ok := l.failed.GetIfPresent(client); ok {
		now := l.now()
		if failed.budget.TokensAt(now) < 1 {
			return refuse(reasonVerificationLimited, errPrefixLimited)
		}
		if l.failedLately(failed, now) {
			class, most = 1, maxFailedWaiting
		}
	}
	select {
	case l.turns <- struct{}{}:
		return nil
	default:
	}
	if l.waiting[class].Add(1) > most {
		l.waiting[class].Add(-1)
		return refuse(reasonVerificationLimited, errQueueLimited)
	}
	defer l.waiting[class].Add(-1)
	timeout := time.NewTimer(maxVerificationWait)
	defer timeout.Stop()
	select {
	case l.turns <- struct{}{}:
		return nil
	case <-timeout.C:
		return refuse(reasonVerificationLimited, errQueueLimited)
	case <-ctx.Done():
		return refuse(reasonVerificationLimited, ctx.Err())
	}
}

// failedLately tells by the time that has passed. By the date, a clock that is
// set back would have a network wait in the queue of those who forge until the
// clock has caught up.
func (l *verificationLimit) failedLately(f *failures, now time.Time) bool {
	return now.Sub(l.began)-time.Duration(f.last.Load()) < failedMemory
}

func (l *verificationLimit) leave() { <-l.turns }

// note counts a signature that has failed against its sender.
func (l *verificationLimit) note(client netip.Prefix) {
	failed, _ := l.failed.ComputeIfAbsent(client, func() (*failures, bool) {
		return &failures{budget: rate.NewLimiter(failedRate, failedBurst)}, false
	})
	now := l.now()
	failed.last.Store(int64(now.Sub(l.began)))
	failed.budget.AllowN(now, 1)
}

// clientPrefix is what one client, or one company, has of addresses: a /24 in
// IPv4, a /56 in IPv6. Requests without an address share one.
func clientPrefix(r *http.Request) netip.Prefix {
	const v4, v6 = 24, 56
	address, ok := clientAddress(r)
	if !ok {
		return netip.Prefix{}
	}
	bits := v6
	if address.Is4() {
		bits = v4
	}
	prefix, _ := address.Prefix(bits)
	return prefix
}
