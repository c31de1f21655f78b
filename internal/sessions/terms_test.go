package sessions

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

// doorkeeper is a Client whose Admit answers with the same terms or the same error.
type doorkeeper struct {
	player
	terms Terms
	err   error

	mu    sync.Mutex
	asked []ID
	enter func() // called before it answers
}

func (d *doorkeeper) Admit(_ context.Context, id ID) (Terms, error) {
	d.mu.Lock()
	d.asked = append(d.asked, id)
	d.mu.Unlock()
	if d.enter != nil {
		d.enter()
	}
	return d.terms, d.err
}

func (player) Admit(context.Context, ID) (Terms, error) { panic("a visit that does not ask has asked") }

func (d *doorkeeper) visit(v Visit) Visit {
	v.Client, v.Asks, v.Enforces = d, true, true
	return v
}

// report is a visit at a gate that lets a session play which the answer refuses.
func (d *doorkeeper) report(v Visit) Visit {
	v.Client, v.Asks = d, true
	return v
}

func (d *doorkeeper) wantAsked(t *testing.T, what string, times int) {
	t.Helper()
	if len(d.asked) != times {
		t.Errorf("%s: asked %d times, want %d", what, len(d.asked), times)
	}
}

// A session is asked for once, whatever it requests, and again when it resumes after its end.
func TestSessionIsAskedForAtItsStart(t *testing.T) {
	t.Parallel()
	r, d := newRegistry(Policy{Timeout: time.Minute}), new(doorkeeper)
	for _, step := range []struct {
		what    string
		advance time.Duration
		err     error // of the answer
		want    error
		asked   int
	}{
		{"refused", 0, errDenied, errDenied, 1},
		{"refused again", 0, errDenied, errDenied, 2},
		{"begins", 0, nil, nil, 3},
		{"plays, whatever the back end would say", 59 * time.Second, errDenied, nil, 3},
		{"resumes too late", time.Minute, errDenied, errDenied, 4},
		{"resumes", 0, nil, nil, 5},
	} {
		r.advance(step.advance)
		d.err = step.err
		wantVisit(t, r, d.visit(r.request(1, "anna", 0)), step.want)
		d.wantAsked(t, step.what, step.asked)
	}
	if d.asked[0] != keyOf(1).ID() {
		t.Error("the question is not about the id of the lists")
	}
}

var errDenied = errors.New("no")

// The attack: a viewer begins a session where nobody is asked, or where the answer is only reported, and plays on
// where it counts. There it is asked for as a new one, but loses neither its place nor its bytes.
func TestSessionWithoutPermission(t *testing.T) {
	t.Parallel()
	for _, asks := range []bool{true, false} {
		r, d := newRegistry(Policy{Timeout: time.Minute}), &doorkeeper{err: errDenied}
		r.capacity = 2 // so that there is no room for another session
		v := r.request(1, "anna", 0)
		visits := []Visit{v, v}
		asked := 0
		if asks {
			visits, asked = []Visit{d.report(v), d.report(v)}, 1
		} else {
			visits[0].Client, visits[1].Client = d, d
		}
		var begun *Session
		for _, v := range visits {
			s, err := r.Visit(t.Context(), v)
			if err != nil {
				t.Fatalf("where the answer does not count: %v", err)
			}
			begun = s
		}
		d.wantAsked(t, "where the answer does not count", asked)
		for range 2 {
			wantVisit(t, r, d.visit(v), errDenied)
		}
		d.err, d.terms = nil, Terms{Limit: 3, Until: r.now().Add(time.Hour)}
		for range 2 {
			if s, err := r.Visit(t.Context(), d.visit(v)); err != nil || s != begun || s.limit != 3 || !s.Ends().Equal(d.terms.Until) {
				t.Errorf("a session that is permitted later: %v", err)
			}
		}
		d.wantAsked(t, "where the answer counts", asked+3)
	}
}

// The permission that a session gets on one node counts on all, also on the one where it began without.
func TestSessionWithoutPermissionInAFleet(t *testing.T) {
	t.Parallel()
	_, fleet := fleetOf(t, 3, Policy{Timeout: time.Minute})
	d := &doorkeeper{err: errDenied}
	wantVisit(t, fleet[0], d.report(begin(1, "anna", 0)), nil)
	wantVisit(t, fleet[1], d.report(again(1, "anna", 0)), nil)
	d.wantAsked(t, "a session of two nodes where the answer does not count", 1)
	for _, node := range fleet {
		wantVisit(t, node, d.visit(again(1, "anna", 0)), errDenied)
	}
	d.err, d.terms = nil, Terms{Limit: 2, Until: time.Now().Add(time.Hour)}
	for range 2 {
		for _, i := range []int{2, 1, 0} {
			wantVisit(t, fleet[i], d.visit(again(1, "anna", 0)), nil)
			if s := fleet[i].session(keyOf(1)); s.granted != 2 || s.Ends().Unix() != d.terms.Until.Unix() {
				t.Errorf("node %d knows the terms %d, %s", i, s.granted, s.Ends())
			}
		}
	}
	d.wantAsked(t, "three nodes where the answer counts, and all after the permission", 1+3+1)
}

// The smallest limit counts: of the claim or the option, and of the answer.
func TestTermsLimitSessions(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ limit, granted, want int }{{0, 0, 9}, {0, 2, 2}, {3, 0, 3}, {3, 2, 2}, {2, 3, 2}} {
		r, d := newRegistry(Policy{Timeout: time.Minute, RefuseNew: true}), &doorkeeper{terms: Terms{Limit: tc.granted}}
		begun := 0
		for session := range 9 {
			if r.visit(d.visit(r.request(session, "anna", tc.limit))) == nil {
				begun++
			}
		}
		if begun != tc.want {
			t.Errorf("limit %d and an answer of %d: %d sessions run, want %d", tc.limit, tc.granted, begun, tc.want)
		}
	}
}

// A session ends for good when its time has come: with its next request, or by itself.
func TestTermsEndASession(t *testing.T) {
	t.Parallel()
	for _, swept := range []bool{true, false} {
		r, d := newRegistry(Policy{Timeout: time.Minute, Extension: time.Hour}), new(doorkeeper)
		d.terms.Until = r.now().Add(30 * time.Second)
		key := keyOf(1)
		v := func() Visit { return d.visit(r.request(1, "anna", 0)) }
		s, err := r.Visit(t.Context(), v())
		if err != nil || !s.Ends().Equal(d.terms.Until) {
			t.Fatalf("%v, ends %s", err, s.Ends())
		}
		r.Extend(key.ID(), r.now().Add(time.Hour)) // must not count
		r.advance(29 * time.Second)
		wantVisit(t, r, v(), nil)
		r.advance(time.Second)
		if runs, _ := r.Runs(key); runs {
			t.Error("the session runs when its time has come")
		}
		if swept {
			r.work(t.Context(), false)
		}
		for range 2 {
			wantVisit(t, r, v(), ErrEnded)
		}
		d.wantAsked(t, "a session whose time has come", 1)
		r.work(t.Context(), false)
		if len(r.ends) != 1 || r.ends[0].Reason != Over {
			t.Errorf("ends: %+v", r.ends)
		}
	}
}

// An extension counts at once, whatever the store still says.
func TestExtensionCountsAtOnce(t *testing.T) {
	t.Parallel()
	r := newRegistry(Policy{Timeout: time.Minute, Extension: time.Hour})
	wantVisit(t, r, r.request(1, "anna", 0), nil)
	until := r.now().Add(time.Hour)
	r.Extend(keyOf(1).ID(), until)
	if got := r.Until(keyOf(1)); !got.Equal(until) {
		t.Errorf("the session plays until %s, want %s", got, until)
	}
}

// Requests that begin one session at the same time ask once, and a session that plays does not
// wait for the answer about another.
func TestConcurrentStartsAskOnce(t *testing.T) {
	t.Parallel()
	r, d := newRegistry(Policy{Timeout: time.Minute}), new(doorkeeper)
	wantVisit(t, r, d.visit(r.request(1, "anna", 0)), nil)
	inside, open := make(chan struct{}, 1), make(chan struct{})
	d.enter = func() { inside <- struct{}{}; <-open }
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			wantVisit(t, r, d.visit(r.request(2, "anna", 0)), nil)
		})
	}
	<-inside
	wantVisit(t, r, d.visit(r.request(1, "anna", 0)), nil)
	close(open)
	all.Wait()
	d.wantAsked(t, "two sessions", 2)
	if n := r.Count(); n != 2 {
		t.Errorf("%d sessions run, want 2", n)
	}
}

// A full node asks for nothing that it could not count, because nothing would hold the terms.
func TestFullNodeDoesNotAsk(t *testing.T) {
	t.Parallel()
	r, d := newRegistry(Policy{Timeout: time.Minute}), new(doorkeeper)
	r.capacity = 10
	for session := range 11 {
		if err := r.visit(d.visit(r.request(session, "", 0))); (err != nil) != (session >= 5) {
			t.Errorf("session %d: %v", session, err)
		}
	}
	d.wantAsked(t, "a node with room for half of the sessions of one network", 5)
	if err := r.MayBegin(d.visit(r.request(12, "", 0))); !errors.Is(err, ErrLimit) {
		t.Errorf("MayBegin = %v", err)
	}
}

// The answer holds on all nodes, over a loss of the Redis, and until the end everywhere.
func TestTermsHoldInAFleet(t *testing.T) {
	t.Parallel()
	s, fleet := fleetOf(t, 3, Policy{Timeout: time.Minute, RefuseNew: true})
	d := &doorkeeper{terms: Terms{Limit: 2, Until: time.Now().Add(time.Hour)}}
	wantVisit(t, fleet[0], d.visit(begin(1, "anna", 0)), nil)
	wantVisit(t, fleet[1], d.visit(again(1, "anna", 0)), nil)
	fleet[0].work(t.Context(), true)
	wantVisit(t, fleet[2], d.visit(again(1, "anna", 0)), nil)
	d.wantAsked(t, "one session on three nodes", 1)
	for i, node := range fleet {
		if s := node.session(keyOf(1)); s.granted != 2 || s.limit != 2 || !s.Ends().Equal(unixTime(d.terms.Until.Unix())) {
			t.Errorf("node %d knows the terms %d, %d, %s", i, s.granted, s.limit, s.Ends())
		}
	}
	wantVisit(t, fleet[1], d.visit(again(2, "anna", 0)), nil) // of a page: its id says when it began
	wantVisit(t, fleet[2], d.visit(begin(3, "anna", 0)), ErrLimit)
	d.wantAsked(t, "three sessions", 3)

	s.do(t, "FLUSHALL")
	for _, node := range fleet[:2] {
		node.work(t.Context(), true)
	}
	restarted := s.node(t, Policy{Timeout: time.Minute})
	wantVisit(t, restarted, d.visit(again(1, "anna", 0)), nil)
	if got := restarted.session(keyOf(1)).Ends(); got.Unix() != d.terms.Until.Unix() {
		t.Errorf("after a restart and a loss of the data the session ends at %s", got)
	}
	d.wantAsked(t, "a session that plays on", 3)
}

// A session whose time has come on one node has ended on the others, also on one that has not
// seen it.
func TestTermsEndASessionInAFleet(t *testing.T) {
	t.Parallel()
	s, fleet := fleetOf(t, 2, Policy{Timeout: time.Hour})
	d := &doorkeeper{terms: Terms{Until: time.Now().Add(20 * time.Minute)}}
	wantVisit(t, fleet[0], d.visit(begin(1, "anna", 0)), nil)
	fleet = append(fleet, s.node(t, Policy{Timeout: time.Minute}))
	for i, node := range fleet {
		if i == 2 {
			fleet[0].work(t.Context(), false)
		}
		node.advance(20 * time.Minute)
		wantVisit(t, node, d.visit(again(1, "anna", 0)), ErrEnded)
	}
	d.wantAsked(t, "a session that has ended", 1)
}

// While the Redis is away, each node asks for itself.
func TestFleetWithoutItsRedisAsks(t *testing.T) {
	t.Parallel()
	s, fleet := fleetOf(t, 2, Policy{Timeout: time.Minute})
	d := new(doorkeeper)
	s.kill()
	for _, node := range fleet {
		wantVisit(t, node, d.visit(again(1, "anna", 0)), nil)
	}
	d.wantAsked(t, "a session on two nodes", 2)
	d.err = errDenied
	wantVisit(t, fleet[0], d.visit(again(2, "anna", 0)), errDenied)
}
