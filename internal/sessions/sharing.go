package sessions

import (
	"context"
	"slices"
	"time"
)

const (
	// sharingPeriod is the time over which a score of sharing is made.
	sharingPeriod = 10 * time.Minute

	// SharingThreshold is the score from which a viewer is reported.
	SharingThreshold = 6

	// maxTraces bounds the viewers of whom more than their sessions is known: those who
	// have had a second session or network lately. maxPlaces bounds the networks of each.
	maxTraces = 10_000
	maxPlaces = 16

	// maxScored bounds the sessions of a viewer that a score looks at.
	maxScored = 256

	// maxReports bounds the reports, and the uses for the fleet, that wait for Run.
	maxReports = 1000
)

// Sharing is a viewer whose tokens probably several people use. One viewer with some
// devices, one of them on the way, stays below SharingThreshold.
type Sharing struct {
	Info              // of the session that made the score so high
	Score, Networks   int
	Countries, Active int // Active are the sessions that run at the same time
}

// trace is where a viewer was lately.
type trace struct {
	places   []place // at most maxPlaces, by network
	reported time.Time
}

// place is a network from which a viewer has played.
type place struct {
	network network
	country countryCode
	seen    int64 // on the tracker's clock
}

// usedBy is whose use of what network is told once in a turn of Run, so that a viewer who begins
// many sessions hides no other.
type usedBy struct {
	viewer *viewer
	from   network
}

// use is the use of a session from a network, of which the fleet is to be told.
type use struct {
	session *Session
	from    network
	inTurns bool
}

// noteUse takes down from where a session is used, and reports the viewer if that makes the
// score high enough. In a fleet, Run asks for the score. The caller holds the mutex.
func (t *Tracker) noteUse(s *Session, from network) {
	of := s.viewer
	if of.name == "" || from == 0 {
		return
	}
	if t.fleet != nil && !t.fleet.away.Load() {
		by := usedBy{of, from}
		if told, ok := t.uses[by]; ok || len(t.uses) < maxReports {
			t.uses[by] = use{s, from, s.shared || told.inTurns}
		}
		return
	}
	if of.trace == nil {
		if len(of.running) < 2 && s.past[0] == 0 && len(of.ended) == 0 || t.traces >= maxTraces {
			return // one session at one place, as nearly always
		}
		of.trace = new(trace)
		t.traces++
		for _, running := range of.running[:min(len(of.running), maxPlaces)] {
			of.trace.note(running.place(), running.country, running.seen.Load())
		}
		of.trace.note(s.past[0], s.country, t.elapsed())
	}
	of.trace.note(from, s.country, t.elapsed())
	report := t.score(of)
	now := t.config.Now()
	if report.Score < SharingThreshold || now.Sub(of.trace.reported) < sharingPeriod || len(t.reports) == maxReports {
		return
	}
	of.trace.reported = now
	report.Info = t.info(s)
	t.reports = append(t.reports, report)
}

// note takes a place down, in place of the one that was seen first if there are too many.
func (tr *trace) note(from network, country countryCode, seen int64) {
	if from == 0 {
		return
	}
	oldest := 0
	for i := range tr.places {
		if tr.places[i].network == from {
			tr.places[i] = place{from, country, seen}
			return
		}
		if tr.places[i].seen < tr.places[oldest].seen {
			oldest = i
		}
	}
	if len(tr.places) < maxPlaces {
		tr.places = append(tr.places, place{from, country, seen})
	} else {
		tr.places[oldest] = place{from, country, seen}
	}
}

// score counts a point for each further network, two for each further country, one for each
// further session at the same time, and two for each session that is used in turns. IPv4
// and IPv6 are two networks of one place, so the larger number counts.
func (t *Tracker) score(of *viewer) (s Sharing) {
	var networks [2]int
	countries := make(map[countryCode]bool)
	for _, p := range of.trace.places {
		if t.elapsed()-p.seen < int64(sharingPeriod) {
			networks[p.network.family()]++
			if p.country != (countryCode{}) {
				countries[p.country] = true
			}
		}
	}
	inTurns := 0
	s.Active = max(0, len(of.running)-maxScored)
	for _, running := range of.running[:min(len(of.running), maxScored)] {
		if t.silent(running, t.policy.Load().Timeout) {
			continue
		}
		if s.Active++; running.shared {
			inTurns++
		}
	}
	s.Networks, s.Countries = max(networks[0], networks[1]), len(countries)
	s.Score = max(0, s.Networks-1) + 2*max(0, s.Countries-1) + max(0, s.Active-1) + 2*inTurns
	return s
}

// scoreInFleet tells the fleet of uses, and returns the viewers whose score over all nodes is high enough.
func (t *Tracker) scoreInFleet(ctx context.Context, uses []use) (reports []Sharing) {
	for batch := range slices.Chunk(uses, beatBatch) {
		args := append(make([]any, 0, 2+5*len(batch)), sharingPeriod.Milliseconds(), SharingThreshold)
		t.mu.Lock()
		for _, u := range batch {
			own := 0
			if u.inTurns {
				own = 2
			}
			args = append(args, u.session.viewer.key, u.from, u.from.family(), u.session.country, own)
		}
		t.mu.Unlock()
		answer, err := t.run(ctx, sharingScript, args...)
		if err != nil {
			return reports
		}
		for row := range slices.Chunk(answer, 5) {
			n, err := numbers(row...)
			if err != nil || len(n) < 5 || n[0] < 0 || n[0] >= int64(len(batch)) {
				return reports
			}
			t.mu.Lock()
			reports = append(reports, Sharing{t.info(batch[n[0]].session), int(n[1]), int(n[2]), int(n[3]), int(n[4])})
			t.mu.Unlock()
		}
	}
	return reports
}

// movedLately reports whether a viewer has used a place in the period of a score.
func (t *Tracker) movedLately(of *viewer) bool {
	return of.trace != nil && slices.ContainsFunc(of.trace.places, func(p place) bool { return t.elapsed()-p.seen < int64(sharingPeriod) })
}

// forgetTrace forgets where a viewer was. The caller holds the mutex.
func (t *Tracker) forgetTrace(of *viewer) {
	if of.trace != nil {
		of.trace = nil
		t.traces--
	}
}
