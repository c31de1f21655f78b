package sessions

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// A URL that is passed on is reported once; a family, a traveller and a player that is
// reloaded are not.
func TestSharingScore(t *testing.T) {
	t.Parallel()
	type use struct {
		session int
		from    string
		country string
		limit   int
	}
	at := func(session int, from, country string) use { return use{session, from, country, 0} }
	var copies, copiesWithLimit, reloads, days []use
	for n := range 50 {
		copies = append(copies, at(n, fmt.Sprintf("10.0.%d.1", n), "CH"))
		copiesWithLimit = append(copiesWithLimit, use{n, fmt.Sprintf("10.0.%d.1", n), "CH", 1})
		reloads = append(reloads, use{n, "10.0.0.1", "CH", 1})
		days = append(days, at(1, fmt.Sprintf("10.0.%d.1", n), "CH"))
	}
	for _, tc := range []struct {
		name  string
		uses  []use
		pause time.Duration
		want  bool
	}{
		{"one player", []use{at(1, "10.0.0.1", "CH")}, time.Second, false},
		{"two devices behind one address", []use{at(1, "10.0.0.1", "CH"), at(2, "10.0.0.1", "CH")}, time.Second, false},
		{"IPv4 and IPv6", []use{at(1, "10.0.0.1", "CH"), at(1, "2001:db8::1", "CH"), at(1, "10.0.0.1", "CH")}, time.Second, false},
		{"from home to the train and abroad", []use{at(1, "10.0.0.1", "CH"), at(1, "10.0.1.1", "CH"), at(1, "10.0.2.1", "FR")}, time.Second, false},
		{"a family of which one is out", []use{at(1, "10.0.0.1", "CH"), at(2, "10.0.0.1", "CH"), at(3, "10.0.0.1", "CH"), at(4, "10.0.1.1", "CH")}, time.Second, false},
		{"a page that is reloaded", reloads, time.Second, false},
		{"a viewer who moves, in the course of a day", days, 15 * time.Minute, false},
		{"one URL on many addresses", copies, time.Second, true},
		{"one URL on many addresses with a limit", copiesWithLimit, time.Second, true},
		{"one session on two addresses in three countries", []use{at(1, "10.0.0.1", "CH"), at(1, "10.0.1.1", "FR"), at(1, "10.0.2.1", "DE"), at(1, "10.0.0.1", "CH")}, time.Second, true},
	} {
		r := newRegistry(Policy{Timeout: time.Minute})
		for _, u := range tc.uses {
			v := r.request(u.session, "anna", u.limit)
			v.Begins, v.Address, v.Client = true, netip.MustParseAddr(u.from), player{u.country, "hls.js"}
			wantVisit(t, r, v, nil)
			r.advance(tc.pause)
			r.work(t.Context(), false)
		}
		if got := len(r.shared); got > 1 || (got == 1) != tc.want {
			t.Errorf("%s: reported %+v", tc.name, r.shared)
		}
	}
}

// However many viewers move around, a bounded number of them is traced, and none for ever.
func TestTracesAreBounded(t *testing.T) {
	t.Parallel()
	r := newRegistry(Policy{Timeout: time.Minute})
	for n := range 2 * maxTraces {
		for session := range 2 {
			wantVisit(t, r, r.request(2*n+session, fmt.Sprint(n), 0), nil)
		}
	}
	if r.traces != maxTraces {
		t.Errorf("%d viewers are traced", r.traces)
	}
	r.advance(sharingPeriod)
	r.sweep()
	if r.traces != 0 || len(r.viewers) != 0 {
		t.Errorf("%d viewers are traced, %d known, of whom none plays", r.traces, len(r.viewers))
	}
}
