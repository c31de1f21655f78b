package controlapi

import (
	"maps"
	"sync"
	"time"
)

// RefusalHistory counts the refusals of the last hours by reason, also those that are only
// reported. It belongs to the process, so a reload keeps it. It is safe for concurrent use.
type RefusalHistory struct {
	mu     sync.Mutex
	Began  time.Time
	counts map[refusalKey]uint64
}

// refusalKey is of closed sets, so an hour has at most twice as many as there are reasons.
type refusalKey struct {
	hour         int64 // since 1970
	reason       string
	onlyReported bool
}

const secondsPerHour = int64(time.Hour / time.Second)

// Count counts a refusal with a reason, which may be only reported.
func (h *RefusalHistory) Count(why string, onlyReported bool, at time.Time) {
	key := refusalKey{at.Unix() / secondsPerHour, why, onlyReported}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.counts == nil {
		h.counts = make(map[refusalKey]uint64)
	}
	if h.counts[key]++; h.counts[key] == 1 {
		maps.DeleteFunc(h.counts, func(other refusalKey, _ uint64) bool {
			return other.hour <= key.hour-RefusalHours || other.hour >= key.hour+RefusalHours // the clock was set back
		})
	}
}

// Last returns the hours until now, the oldest first.
func (h *RefusalHistory) Last(now time.Time) Refusals {
	first := now.Unix()/secondsPerHour - RefusalHours + 1
	hours := make([]RefusalHour, RefusalHours)
	for i := range hours {
		hours[i] = RefusalHour{time.Unix((first+int64(i))*secondsPerHour, 0).UTC(), make(map[string]uint64), make(map[string]uint64)}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, n := range h.counts {
		switch i := key.hour - first; {
		case i < 0 || i >= RefusalHours:
		case key.onlyReported:
			hours[i].WouldRefuse[key.reason] = n
		default:
			hours[i].Refused[key.reason] = n
		}
	}
	since := hours[0].Start
	if h.Began.After(since) {
		since = h.Began.UTC()
	}
	return Refusals{since, hours}
}
