package controlapi

import (
	"sync"
	"time"
)

// RefusalHistory counts the refusals of the last hours by reason, also those that are only
// reported. It belongs to the process, so a reload keeps it. It is safe for concurrent use.
type RefusalHistory struct {
	mu    sync.Mutex
	Began time.Time
	hours [RefusalHours]hourOfRefusals
}

// hourOfRefusals has the refusals of an hour, which shares its place with those that are
// a multiple of 24 hours away.
type hourOfRefusals struct {
	start  int64 // in hours since 1970
	counts map[refusalKey]uint64
}

// refusalKey is of closed sets, so an hour has at most twice as many as there are reasons.
type refusalKey struct {
	reason       string
	onlyReported bool
}

func hourOf(at time.Time) int64 { return at.Unix() / int64(time.Hour/time.Second) }

// Count counts a refusal with a reason, which may be only reported.
func (h *RefusalHistory) Count(why string, onlyReported bool, at time.Time) {
	start := hourOf(at)
	h.mu.Lock()
	defer h.mu.Unlock()
	hour := &h.hours[uint64(start)%RefusalHours]
	if hour.start != start || hour.counts == nil {
		*hour = hourOfRefusals{start, make(map[refusalKey]uint64)}
	}
	hour.counts[refusalKey{why, onlyReported}]++
}

// Last returns the hours until now, the oldest first.
func (h *RefusalHistory) Last(now time.Time) Refusals {
	list := make([]RefusalHour, len(h.hours))
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range list {
		start := hourOf(now) - int64(len(list)-1-i)
		list[i] = RefusalHour{
			Start:   time.Unix(start*3600, 0).UTC(),
			Refused: make(map[string]uint64), WouldRefuse: make(map[string]uint64),
		}
		hour := h.hours[uint64(start)%RefusalHours]
		if hour.start != start {
			continue
		}
		for key, n := range hour.counts {
			if key.onlyReported {
				list[i].WouldRefuse[key.reason] = n
			} else {
				list[i].Refused[key.reason] = n
			}
		}
	}
	since := list[0].Start
	if h.Began.After(since) {
		since = h.Began.UTC()
	}
	return Refusals{Since: since, Hours: list}
}
