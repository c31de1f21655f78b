package signedplayback

import (
	"sync"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/controlapi"
)

// refusalHistory counts the refusals of the last hours by reason, also those that are only
// reported. It belongs to the process, so a reload keeps it. It is safe for concurrent use.
type refusalHistory struct {
	mu    sync.Mutex
	began time.Time
	hours [controlapi.RefusalHours]refusalHour
}

// refusalHour has the refusals of an hour, which shares its place with those that are
// a multiple of 24 hours away.
type refusalHour struct {
	start  int64 // in hours since 1970
	counts map[refusalKey]uint64
}

// refusalKey is of closed sets, so an hour has at most twice as many as there are reasons.
type refusalKey struct {
	result result
	reason reason
}

func hourOf(at time.Time) int64 { return at.Unix() / int64(time.Hour/time.Second) }

// count counts a refusal.
func (h *refusalHistory) count(became result, why reason, at time.Time) {
	start := hourOf(at)
	h.mu.Lock()
	defer h.mu.Unlock()
	hour := &h.hours[uint64(start)%controlapi.RefusalHours]
	if hour.start != start || hour.counts == nil {
		*hour = refusalHour{start, make(map[refusalKey]uint64)}
	}
	hour.counts[refusalKey{became, why}]++
}

// last returns the hours until now, the oldest first.
func (h *refusalHistory) last(now time.Time) controlapi.Refusals {
	list := make([]controlapi.RefusalHour, len(h.hours))
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range list {
		start := hourOf(now) - int64(len(list)-1-i)
		list[i] = controlapi.RefusalHour{
			Start:   time.Unix(start*3600, 0).UTC(),
			Refused: make(map[string]uint64), WouldRefuse: make(map[string]uint64),
		}
		hour := h.hours[uint64(start)%controlapi.RefusalHours]
		if hour.start != start {
			continue
		}
		for key, n := range hour.counts {
			if key.result == resultWouldRefuse {
				list[i].WouldRefuse[string(key.reason)] = n
			} else {
				list[i].Refused[string(key.reason)] = n
			}
		}
	}
	since := list[0].Start
	if h.began.After(since) {
		since = h.began.UTC()
	}
	return controlapi.Refusals{Since: since, Hours: list}
}
