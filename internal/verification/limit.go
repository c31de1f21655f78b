package verification

import (
	"context"
	"errors"
	"runtime"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/signed-playback/caddy-signed-playback/internal/queue"
	"github.com/signed-playback/caddy-signed-playback/internal/worklimit"
)

const (
	// The budget of a network for failed signatures: this many at once, then this many a
	// second. They take 25 ms of a processor, and 2.5 ms in each second. A viewer has none,
	// but a company with one address may have players with old keys.
	FailedBurst = 500
	failedRate  = 50

	// failedMemory is how long a network waits in the queue of failed ones after
	// a failure.
	failedMemory = time.Minute

	// These bounds keep networks with failures from filling the queue of the
	// others.
	maxTrustedWaiting = 1024
	maxFailedWaiting  = 32

	maxVerificationWait = time.Second
)

var (
	errNetworkLimited = errors.New("too many tokens with invalid signatures from this network; try again later")
	errQueueLimited   = errors.New("too many tokens are waiting to be verified; try again in a moment")
)

// Limit rations signature checks, the only expensive thing that
// strangers can ask for, so that viewers keep the processor. It is safe for
// concurrent use.
type Limit struct {
	trusted, failed *queue.Queue // share half of the processors
	Failures        *worklimit.Networks
}

func newLimit() *Limit {
	turns := semaphore.NewWeighted(int64(max(1, runtime.GOMAXPROCS(0)/2)))
	return &Limit{
		trusted:  queue.New(turns, maxTrustedWaiting, maxVerificationWait),
		failed:   queue.New(turns, maxFailedWaiting, maxVerificationWait),
		Failures: worklimit.NewNetworks(failedRate, FailedBurst),
	}
}

// enter waits for the client's turn. Call leave unless there is an error.
func (l *Limit) enter(ctx context.Context, client worklimit.ClientNetworks) (leave func(), err error) {
	if l.Failures.Exhausted(client) {
		return nil, errNetworkLimited
	}
	q := l.trusted
	if l.Failures.SpentWithin(client, failedMemory) {
		q = l.failed
	}
	err = q.Enter(ctx, 1)
	if errors.Is(err, queue.ErrFull) || errors.Is(err, queue.ErrTimeout) {
		err = errQueueLimited
	}
	return func() { q.Leave(1) }, err
}
