package sessions

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// clock is a clock that a test moves.
type clock struct{ nanoseconds atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(1_800_000_000, c.nanoseconds.Load()) }
func (c *clock) advance(d time.Duration) { c.nanoseconds.Add(int64(d)) }

// player is a Client.
type player struct{ country, userAgent string }

func (p player) Country() string   { return p.country }
func (p player) UserAgent() string { return p.userAgent }

var (
	home, mobile = netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("198.51.100.7")
	home6        = netip.MustParseAddr("2001:db8:1::7")
)

func keyOf(n int) (key Key) {
	binary.LittleEndian.PutUint64(key[:], uint64(n))
	return key
}

// registry is a Tracker with a clock of its own, and the ends of its sessions.
type registry struct {
	*Tracker
	*clock
	revoked  atomic.Pointer[func(ID) bool] // until it is asked
	ends     []Event
	shared   []Sharing
	failures atomic.Int64 // calls of the Redis
}

func newRegistry(policy Policy) *registry {
	r := &registry{clock: new(clock)}
	r.track(Config{Policy: policy, Now: r.now})
	return r
}

// track makes the Tracker, of whose calls the registry takes notes.
func (r *registry) track(config Config) {
	config.CountError, config.Away, config.Dropped = func() { r.failures.Add(1) }, func(error) {}, func(string) {}
	config.Ended, config.Shared = func(e Event) { r.ends = append(r.ends, e) }, func(s []Sharing) { r.shared = append(r.shared, s...) }
	config.Extended, config.Revoked = func(ID) time.Time { return time.Time{} }, r.takeRevoked
	r.Tracker = New(config)
}

func (r *registry) takeRevoked() func(ID) bool {
	if revoked := r.revoked.Swap(nil); revoked != nil {
		return *revoked
	}
	return nil
}

func (r *registry) visit(v Visit) error {
	_, err := r.Visit(context.Background(), v)
	return err
}

func wantVisit(t testing.TB, r *registry, v Visit, want error) {
	t.Helper()
	if err := r.visit(v); !errors.Is(err, want) {
		t.Errorf("session %d: %v, want %v", v.Key[0], err, want)
	}
}

// request is a visit of a session of a viewer at home.
func (r *registry) request(session int, viewer string, limit int) Visit {
	return Visit{Key: keyOf(session), Video: "film", Viewer: viewer, Address: home, Client: player{"CH", "hls.js"}, Limit: limit, Expires: r.now().Add(time.Hour)}
}

// specification says what a Tracker does in the fewest words, with a list of all sessions.
type specification struct {
	refuseNew bool
	sessions  []*specified
}

type specified struct {
	key, viewer, agent int
	network            netip.Addr
	begun, seen        time.Time
	ended              bool // for good
}

func (m *specification) running(now time.Time, viewer int) (running []*specified) {
	for _, s := range m.sessions {
		if s.viewer == viewer && !s.ended && now.Sub(s.seen) < time.Minute {
			running = append(running, s)
		}
	}
	slices.SortStableFunc(running, func(a, b *specified) int { return a.begun.Compare(b.begun) })
	return running
}

func (m *specification) visit(now time.Time, v specified, limit int) error {
	running := m.running(now, v.viewer)
	at := slices.IndexFunc(m.sessions, func(s *specified) bool { return s.key == v.key })
	if at >= 0 && m.sessions[at].ended {
		return ErrEnded
	}
	if at >= 0 && slices.Contains(running, m.sessions[at]) {
		m.sessions[at].seen, m.sessions[at].network = now, v.network
		return nil
	}
	for len(running) >= limit {
		ending := 0
		if m.refuseNew {
			if ending = slices.IndexFunc(running, func(s *specified) bool {
				return s.network == v.network && s.agent == v.agent && now.Sub(s.seen) >= 10*time.Second
			}); ending < 0 || len(running) > limit {
				return ErrLimit
			}
		}
		running[ending].ended = true
		running = slices.Delete(running, ending, ending+1)
	}
	v.seen = now
	if at >= 0 {
		m.sessions[at].seen, m.sessions[at].network = now, v.network
	} else {
		m.sessions = append(m.sessions, &v)
	}
	return nil
}

// Random sequences of requests, pauses and ends agree with the specification.
func TestTrackerFollowsTheSpecification(t *testing.T) {
	t.Parallel()
	for seed := range uint64(400) {
		random := rand.New(rand.NewPCG(seed, 0))
		m := &specification{refuseNew: seed%2 == 1}
		r := newRegistry(Policy{Timeout: time.Minute, RefuseNew: m.refuseNew})
		begun := make(map[int]time.Time)
		for step := range 120 {
			key := random.IntN(8)
			viewer, limit, agent := key%2, 1+key%2*random.IntN(2), key%3
			network := []netip.Addr{home, mobile}[random.IntN(2)]
			switch random.IntN(6) {
			case 0:
				r.advance(time.Duration(1+random.IntN(4)) * 10 * time.Second)
			case 1:
				r.sweep()
			case 2:
				running := m.running(r.now(), viewer)
				at := slices.IndexFunc(running, func(s *specified) bool { return s.key == key })
				if at >= 0 {
					running[at].ended = true
				}
				if _, found, _ := r.Find(t.Context(), keyOf(key).ID()); found != (at >= 0) {
					t.Fatalf("seed %d, step %d: Find(%d) = %t", seed, step, key, found)
				}
				if err := r.End(t.Context(), keyOf(key).ID()); err != nil {
					t.Fatal(err)
				}
			default:
				r.advance(time.Second) // no two sessions begin at the same time
				if begun[key].IsZero() {
					begun[key] = r.now()
				}
				v := r.request(key, fmt.Sprint(viewer), limit)
				v.Address, v.Begun, v.Client = network, begun[key], player{"CH", fmt.Sprint(agent)}
				got := r.visit(v)
				want := m.visit(r.now(), specified{key: key, viewer: viewer, agent: agent, network: network, begun: begun[key]}, limit)
				if !errors.Is(got, want) {
					t.Fatalf("seed %d, step %d: session %d: %v, want %v", seed, step, key, got, want)
				}
			}
			r.sweep()
			if got, want := r.Count(), len(m.running(r.now(), 0))+len(m.running(r.now(), 1)); got != want {
				t.Fatalf("seed %d, step %d: %d sessions run, want %d", seed, step, got, want)
			}
		}
	}
}

// One link on many screens: the sessions that a limit has ended stay ended, however many there
// were and whatever order they come back in, until their tokens have expired.
func TestEndedSessionsStayEnded(t *testing.T) {
	t.Parallel()
	r := newRegistry(Policy{Timeout: time.Minute, Extension: time.Hour})
	const flood = 10 * maxEnded
	visit := func(session int) error {
		v := r.request(session, "anna", 1)
		v.Begun, v.Expires = time.Unix(1_800_000_000, 0).Add(time.Duration(session)*time.Second), time.Unix(1_800_000_000, 0).Add(2*time.Hour)
		return r.visit(v)
	}
	for session := range flood {
		r.advance(time.Second)
		if err := visit(session); err != nil {
			t.Fatalf("session %d: %v", session, err)
		}
	}
	for _, session := range rand.Perm(flood - 1) {
		if err := visit(session); !errors.Is(err, ErrEnded) {
			t.Errorf("session %d comes back: %v", session, err)
		}
	}
	if err := visit(flood - 1); err != nil {
		t.Errorf("the newest session: %v", err)
	}
	of := r.viewers[keyOfViewer("anna")]
	if len(of.ended) > maxEnded {
		t.Errorf("%d ended sessions are listed", len(of.ended))
	}
	r.advance(2 * time.Hour) // exp, and sessions may play on
	r.sweep()
	if err := visit(0); !errors.Is(err, ErrEnded) {
		t.Errorf("a session comes back when its token has expired, before its extension would end: %v", err)
	}
	r.advance(3 * time.Hour)
	r.sweep()
	if len(r.viewers) != 0 {
		t.Errorf("%d viewers are remembered after their tokens have expired", len(r.viewers))
	}
}

// A flood of starts with one token or with many leaves running viewers alone, whether
// the flood has a limit or not, and a node that is full counts no more.
func TestFloodsOfStarts(t *testing.T) {
	t.Parallel()
	const full = 2000
	for _, tc := range []struct {
		name           string
		limit          int
		viewers        int // of the flood
		networks       int
		want, newcomer error // the last start of the flood, and that of a new viewer elsewhere
		counted        int
	}{
		{"one token without a limit", 0, 1, 1, nil, nil, full/2 - 1},
		{"one token with a limit", 3, 1, 1, nil, nil, 3},
		{"many tokens of one network", 1, full + 10, 1, ErrLimit, nil, full/2 - 1},
		{"many tokens of many networks", 1, full + 10, 200, ErrLimit, ErrLimit, full - 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(Policy{Timeout: time.Minute})
			r.capacity = full
			running := r.request(-1, "anna", 1)
			wantVisit(t, r, running, nil)
			var err error
			for n := range full + 10 {
				v := r.request(n, fmt.Sprint("flood ", n%tc.viewers), tc.limit)
				v.Begins = true
				v.Address = netip.AddrFrom4([4]byte{10, byte(n % tc.networks >> 8), byte(n % tc.networks), 0})
				err = r.visit(v)
			}
			if !errors.Is(err, tc.want) {
				t.Errorf("the end of the flood: %v, want %v", err, tc.want)
			}
			if got := r.Count() - 1; got != tc.counted {
				t.Errorf("%d sessions of the flood are counted, want %d", got, tc.counted)
			}
			if err := r.visit(running); err != nil || len(r.viewers[keyOfViewer("anna")].running) != 1 {
				t.Errorf("the running viewer: %v", err)
			}
			wantVisit(t, r, r.request(-2, "berta", 1), tc.newcomer)
		})
	}
}

// A copied URL is used from two networks in turns. A viewer who leaves home is not,
// and neither is a player with IPv4 and IPv6.
func TestSharedSessions(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		networks []netip.Addr
		want     bool
	}{
		{"one network", []netip.Addr{home, home}, false},
		{"from home to the train", []netip.Addr{home, mobile, mobile}, false},
		{"two families in turns", []netip.Addr{home, home6, home, home6}, false},
		{"an unknown address between", []netip.Addr{home, {}, home}, false},
		{"two addresses of one network", []netip.Addr{home, home.Next(), home}, false},
		{"IPv4 as such and mapped", []netip.Addr{home, netip.AddrFrom16(home.As16()), home}, false},
		{"two places in turns", []netip.Addr{home, mobile, home}, true},
		{"two places in turns, with IPv6 at one", []netip.Addr{home6, home, mobile, home6, home}, true},
	} {
		r := newRegistry(Policy{Timeout: time.Minute})
		for _, network := range tc.networks {
			v := r.request(1, "anna", 1)
			v.Address = network
			wantVisit(t, r, v, nil)
		}
		if got := r.list(r.sessions.Values(), func(*Session) bool { return true }); len(got) != 1 || got[0].Shared != tc.want {
			t.Errorf("%s: %+v, want shared %t", tc.name, got, tc.want)
		}
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	r := newRegistry(Policy{Timeout: time.Minute})
	s, err := r.Visit(context.Background(), r.request(1, "anna", 1))
	if err != nil {
		t.Fatal(err)
	}
	started := r.now()
	s.AddBytes(1000)
	r.advance(30 * time.Second)
	s.AddBytes(234)
	r.advance(59 * time.Second)
	r.work(t.Context(), false)
	if len(r.ends) != 0 {
		t.Fatalf("a session that receives has ended: %v", r.ends)
	}
	r.advance(time.Second)
	r.work(t.Context(), false)
	want := []Event{{
		Info: Info{
			ID: keyOf(1).ID(), Viewer: "anna", Video: "film", Started: started, LastSeen: started.Add(30 * time.Second),
			Country: "CH", Network: netip.MustParsePrefix("192.0.2.0/24"), Expires: started.Add(time.Hour), UserAgent: "hls.js", Bytes: 1234,
		},
		Ended: r.now(), Reason: TimedOut,
	}}
	if diff := cmp.Diff(want, r.ends, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

// A session that another node has revoked ends with the next turn, not with the next request of its
// player, so the viewer may begin another one. All others stay.
func TestRevokedSessionMakesRoom(t *testing.T) {
	t.Parallel()
	r := newRegistry(Policy{Timeout: time.Minute, RefuseNew: true})
	for session, want := range []error{nil, nil, ErrLimit} {
		wantVisit(t, r, r.request(session, "anna", 2), want)
	}
	r.revoked.Store(new(func(id ID) bool { return id == keyOf(1).ID() }))
	r.work(t.Context(), false)
	if len(r.ends) != 1 || r.ends[0].ID != keyOf(1).ID() || r.ends[0].Reason != Deleted {
		t.Errorf("%+v have ended", r.ends)
	}
	for session, want := range map[int]error{0: nil, 1: ErrEnded, 2: nil} {
		wantVisit(t, r, r.request(session, "anna", 2), want)
	}
}

// The end of the server tells of each session that runs.
func TestStop(t *testing.T) {
	t.Parallel()
	r := newRegistry(Policy{Timeout: time.Minute})
	for session := range 3 {
		wantVisit(t, r, r.request(session, "anna", 0), nil)
	}
	ctx, stop := context.WithCancel(t.Context())
	go r.Run(ctx)
	stop()
	r.Stop()
	for _, e := range r.ends {
		if e.Reason != Stopped {
			t.Errorf("%s has ended: %s", e.ID, e.Reason)
		}
	}
	if len(r.ends) != 3 {
		t.Errorf("%d ends are told", len(r.ends))
	}
}

// The attack: a viewer renews sessions that do not exist, on a node with many. It is not
// parallel, because the allocations of tests beside it would count.
func TestFindKeyLooksAtOneSession(t *testing.T) {
	r := newRegistry(Policy{Timeout: time.Minute})
	for session := range 1000 {
		wantVisit(t, r, r.request(session, "anna", 0), nil)
	}
	if info, found, err := r.FindKey(t.Context(), keyOf(7)); !found || err != nil || info.ID != keyOf(7).ID() {
		t.Errorf("a session that runs: %+v, %t, %v", info, found, err)
	}
	unknown := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			if _, found, err := r.FindKey(b.Context(), keyOf(2000)); found || err != nil {
				b.Errorf("an unknown session: %t, %v", found, err)
			}
		}
	})
	if unknown.AllocedBytesPerOp() > 200 {
		t.Errorf("looking for an unknown session takes %d bytes: it copies the others", unknown.AllocedBytesPerOp())
	}
}

func TestParseID(t *testing.T) {
	t.Parallel()
	id := keyOf(1).ID()
	if got, err := ParseID(id.String()); got != id || err != nil {
		t.Errorf("ParseID(%q) = %s, %v", id, got, err)
	}
	for _, text := range []string{"", "ab", id.String()[1:], id.String() + "0", "g" + id.String()[1:], "A" + id.String()[1:]} {
		if got, err := ParseID(text); err == nil {
			t.Errorf("ParseID(%q) = %s", text, got)
		}
	}
}

// Requests, ends and sweeps at the same time leave a registry whose parts agree.
func TestTrackerUnderLoad(t *testing.T) {
	t.Parallel()
	r := newRegistry(Policy{Timeout: time.Minute})
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 1))
			for range 3000 {
				session := random.IntN(50)
				switch random.IntN(20) {
				case 0:
					_ = r.End(t.Context(), keyOf(session).ID())
				case 1:
					r.advance(5 * time.Second)
					r.sweep()
				case 2:
					r.list(r.sessions.Values(), func(*Session) bool { return true })
				default:
					v := r.request(session+1000*random.IntN(100), fmt.Sprint(session%5), 1+session%5)
					v.Address = []netip.Addr{home, mobile}[random.IntN(2)]
					if s, err := r.Visit(context.Background(), v); err == nil {
						s.AddBytes(1)
					}
				}
			}
		})
	}
	group.Wait()
	running := 0
	for _, of := range r.viewers {
		running += len(of.running)
		for _, s := range of.running {
			if r.session(s.key) != s {
				t.Errorf("session %s runs and is not in its shard", s.id)
			}
		}
	}
	if listed := len(r.list(r.sessions.Values(), func(*Session) bool { return true })); running != r.Count() || listed != r.Count() {
		t.Errorf("%d sessions run, %d are listed, %d are counted", running, listed, r.Count())
	}
}

// A node that is full stays within 64 MiB.
func TestMemoryOfAFullNode(t *testing.T) {
	r := newRegistry(Policy{Timeout: time.Minute})
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	for n := range maxSessions {
		v := r.request(n, fmt.Sprintf("viewer-%032d", n), 1)
		v.Video, v.Client = fmt.Sprintf("video-%026d", n), player{"CH", fmt.Sprintf("Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.%d", n)}
		v.Address = netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0})
		wantVisit(t, r, v, nil)
	}
	if got := heap() - before; got > 64<<20 {
		t.Errorf("%d sessions of as many viewers and videos take %d bytes", r.Count(), got)
	}
	runtime.KeepAlive(r)
}

func BenchmarkVisit(b *testing.B) {
	r := newRegistry(Policy{Timeout: time.Minute})
	for n := range 1000 {
		wantVisit(b, r, r.request(n, fmt.Sprint(n), 1), nil)
	}
	begun := time.Now()
	r.elapsed = func() int64 { return int64(time.Since(begun)) }
	v := r.request(1, "1", 1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Visit(context.Background(), v); err != nil {
			b.Fatal(err)
		}
	}
}
