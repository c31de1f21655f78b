// Package sessions keeps the registry of playback sessions: which are running, how many a
// viewer may have at a time, which have ended for good, and which may play beyond the end
// of their token. It knows nothing of tokens or HTTP.
//
// # What it costs
//
// A request of a known session reads a concurrent map and stores one time.
// Everything else happens at the start and at the end of a session.
//
// # Bounds
//
// A node counts at most 100,000 sessions. Once half of that is used, a viewer or a network
// with more than 1,000 sessions gets no more. At a bound, running sessions stay. A new one
// without a limit plays and is not counted; a new one with a limit is refused, because
// nobody could hold the limit.
package sessions

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/singleflight"
)

const (
	// DefaultTimeout is how long a session may be silent.
	DefaultTimeout = time.Minute

	// maxSessions bounds the sessions of a node, and again the viewers of whom only
	// ended sessions are remembered.
	maxSessions = 100_000

	// fairShare is which part of that a viewer or a network has when half is used.
	fairShare = 100

	// silence is how long a session has been silent when a new one of the same
	// client may take its place under RefuseNew: most likely a reloaded page.
	silence = 10 * time.Second

	sweepInterval = time.Second
)

// The errors of Visit, besides those of Client.Admit.
var (
	ErrLimit = errors.New("sessions: the viewer has as many sessions as permitted")
	ErrEnded = errors.New("sessions: the session has ended")
)

// Reason says why a session has ended.
type Reason string

// The reasons.
const (
	TimedOut  Reason = "timeout"  // it was silent for too long
	Replaced  Reason = "limit"    // a newer session of the viewer took its place
	TakenOver Reason = "takeover" // a new session of the same client took its place
	Deleted   Reason = "deleted"  // the operator has ended or revoked it
	Stopped   Reason = "stopped"  // the server stops; the session may go on elsewhere
	Over      Reason = "until"    // Terms.Until has come
)

// known returns the reason, or the most likely one of a node of another version.
func (r Reason) known() Reason {
	if slices.Contains(Reasons(), r) {
		return r
	}
	return Replaced
}

// Reasons returns all reasons.
func Reasons() []Reason { return []Reason{TimedOut, Replaced, TakenOver, Deleted, Stopped, Over} }

// Visit is one request.
type Visit struct {
	Key    Key
	Video  string
	Viewer string // whose sessions count together; "" for one who has no other

	// Begun is when the session began, as its key says; the zero time for now. Begins
	// says that this request begins it, so no other node can know it.
	Begun  time.Time
	Begins bool

	Address netip.Addr // of the client; the zero value if it is unknown. Its /24 or /48 counts.
	Client  Client
	Limit   int       // of the viewer's sessions at a time, 0 for none
	Expires time.Time // of the token, the zero time without one

	// Asks says that Client.Admit is asked at the start of the session. Enforces says that a
	// session which it has not permitted must not play; else it plays.
	Asks, Enforces bool
}

// mustAsk reports whether a session that runs has never been permitted, and must be.
func (v Visit) mustAsk(s *Session) bool { return v.Enforces && !s.admitted.Load() }

// Terms are what the operator permits a session at its start.
type Terms struct {
	Limit int       // of the viewer's sessions at a time, 0 for none
	Until time.Time // when the session ends for good, the zero time for never
}

// SmallerLimit returns the smaller of two limits. 0 is none.
func SmallerLimit(a, b int) int {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// Policy is what the config in force says. The zero value is not valid.
type Policy struct {
	Timeout   time.Duration // a session that is silent for so long has ended
	RefuseNew bool          // at the limit, instead of ending the oldest
	Extension time.Duration // how long at most a session plays beyond the end of its token
}

// Config is what a Tracker gets from its host. All functions but Now are required.
type Config struct {
	Policy Policy
	Now    func() time.Time // default: time.Now

	// Ended is told of each session that has ended, by the goroutine of Run.
	Ended func(Event)

	// Extended returns how long a session may play beyond its token, as the store has it.
	Extended func(ID) time.Time

	// Revoked returns which sessions the operator has revoked, or nil if none has been since
	// the last call. It is called by the goroutine of Run.
	Revoked func() func(ID) bool

	// Shared is told of the viewers who probably share a token, each once in ten minutes, by
	// the goroutine of Run.
	Shared func([]Sharing)

	// Dropped counts what a bound has dropped: DroppedSession for a request that found no
	// room and plays uncounted, DroppedEnd for an end of which Ended is not told.
	Dropped func(what string)

	// Redis is shared by the fleet; nil if each node counts by itself. CountError counts
	// calls of it that fail. Away is told when it stops to answer, and why, and with nil
	// when it is back.
	Redis      Redis
	CountError func()
	Away       func(error)
}

// The values of Config.Dropped.
const DroppedSession, DroppedEnd = "session", "end"

// Event is the end of a session.
type Event struct {
	Info
	Ended  time.Time
	Reason Reason
}

// Info describes a session for lists and events.
type Info struct {
	ID        ID
	Viewer    string
	Video     string
	Started   time.Time
	LastSeen  time.Time
	Country   string
	Network   netip.Prefix
	UserAgent string
	Bytes     int64
	Shared    bool      // it was used from two networks in turns
	Expires   time.Time // the exp of the newest token, the zero time without one
	Ends      time.Time // Terms.Until
}

// UID returns the name of the viewer, "" if the token has none.
func (i Info) UID() string {
	if strings.HasPrefix(i.Viewer, Unnamed) {
		return ""
	}
	return i.Viewer
}

// Tracker is the registry of one node. It is safe for concurrent use.
type Tracker struct {
	config  Config
	policy  atomic.Pointer[Policy]
	elapsed func() int64 // nanoseconds, by a clock that setting the wall clock does not move

	capacity int // maxSessions; tests have less

	sessions *otter.Cache[Key, *Session] // those that run; it never evicts one
	starts   singleflight.Group          // of sessions that ask, by key

	mu        sync.Mutex // of changes of what runs, and of the following
	viewers   map[viewerKey]*viewer
	networks  map[network]int  // sessions that began there
	counts    map[string]count // by video
	traces    int              // viewers with one
	reports   []Sharing        // that are yet to be told
	uses      map[usedBy]use   // of which the fleet is yet to be told
	endings   []ending         // that are yet to be told
	forgotten time.Time        // when sweep last looked for what may be forgotten

	done  chan struct{} // closed when Run has ended
	fleet *fleet        // nil for a node of its own
}

// ending is the end of a session on this node.
type ending struct {
	Event
	viewer viewerKey
	untold int64 // bytes of which the fleet does not know
}

// maxEndings bounds the ends of sessions that wait for Run.
const maxEndings = 10_000

// New returns a Tracker. Run has sessions end that are silent.
func New(config Config) *Tracker {
	t := &Tracker{
		config: config, capacity: maxSessions, sessions: otter.Must(&otter.Options[Key, *Session]{}), done: make(chan struct{}), fleet: newFleet(config.Redis),
		viewers: make(map[viewerKey]*viewer), counts: make(map[string]count), uses: make(map[usedBy]use), networks: make(map[network]int),
	}
	t.Use(config.Policy)
	if config.Now == nil {
		epoch := time.Now()
		t.config.Now, t.elapsed = time.Now, func() int64 { return int64(time.Since(epoch)) } // which takes half the time of time.Now
	} else {
		epoch := config.Now()
		t.elapsed = func() int64 { return int64(config.Now().Sub(epoch)) }
	}
	return t
}

// Use sets the policy, which holds for the next request.
func (t *Tracker) Use(policy Policy) { t.policy.Store(&policy) }

// session returns the running session with a key, or nil.
func (t *Tracker) session(key Key) *Session {
	s, _ := t.sessions.GetIfPresent(key)
	return s
}

// Visit counts a request for its session, which it begins or resumes if it does not
// run. The error is ErrLimit, ErrEnded or one of Client.Admit. Only a request that begins or
// resumes a session waits.
func (t *Tracker) Visit(ctx context.Context, v Visit) (*Session, error) {
	s := t.session(v.Key)
	now := t.elapsed()
	if s == nil || now-s.seen.Load() >= int64(t.policy.Load().Timeout) || t.isOver(s) || v.mustAsk(s) {
		return t.start(ctx, v)
	}
	s.seen.Store(now)
	s.renew(v.Expires)
	if from := networkOf(v.Address); !s.at(from) {
		t.mu.Lock()
		defer t.mu.Unlock()
		s.moveTo(from, v.Client.Country())
		t.noteUse(s, from)
	}
	return s, nil
}

// silent reports whether a session has asked for nothing for so long.
func (t *Tracker) silent(s *Session, long time.Duration) bool {
	return t.elapsed()-s.seen.Load() >= int64(long)
}

// ended returns why a session that runs has ended by itself.
func (t *Tracker) ended(s *Session) (why Reason, ended bool) {
	if t.isOver(s) {
		return Over, true
	}
	return TimedOut, t.silent(s, t.policy.Load().Timeout)
}

// start begins or resumes a session. Requests that begin the same one ask for it once.
func (t *Tracker) start(ctx context.Context, v Visit) (*Session, error) {
	if !v.Asks {
		return t.startOne(ctx, v)
	}
	started, err, _ := t.starts.Do(fmt.Sprint(v.Key, v.Enforces), func() (any, error) { return t.startOne(ctx, v) })
	if err != nil {
		return nil, err
	}
	return started.(*Session), nil
}

func (t *Tracker) startOne(ctx context.Context, v Visit) (*Session, error) {
	s := t.newSession(v)
	alone := t.fleet == nil || t.fleet.away.Load()
	if alone && !v.Asks {
		return t.admitAlone(s, v)
	}
	siblings, known, err := t.look(s, v)
	if known != nil || err != nil {
		return known, err
	}
	err = errUnasked
	if !alone && (!v.Asks || !v.Begins) {
		err = t.startInFleet(ctx, s, v, siblings, v.Asks)
	}
	if v.Asks && err != nil && !errors.Is(err, ErrEnded) {
		if err := t.ask(ctx, s, v); err != nil {
			return nil, err
		}
		if !alone && errors.Is(err, errUnasked) {
			err = t.startInFleet(ctx, s, v, siblings, false)
		}
	}
	switch {
	case alone:
		return t.admitAlone(s, v)
	case err == nil:
		return t.admit(s, v, func(of *viewer) error {
			if of.listsEnded(s.id) { // another start has ended it meanwhile
				return ErrEnded
			}
			return nil
		})
	case errors.Is(err, ErrEnded):
		t.mu.Lock()
		defer t.mu.Unlock()
		t.remember(s.viewerKey(v.Viewer), s.id, s.begun, t.memorable(s))
		return nil, err
	case errors.Is(err, ErrLimit):
		return nil, err
	default:
		t.fleet.hurry()
		return t.admitAlone(s, v)
	}
}

// errUnasked says that a session does not run in the fleet, and that nobody has asked for it yet.
var errUnasked = errors.New("sessions: nobody has asked whether the session may begin")

// ask asks on which terms a session may play.
func (t *Tracker) ask(ctx context.Context, s *Session, v Visit) error {
	terms, err := v.Client.Admit(ctx, s.id)
	if err == nil {
		s.accept(terms, true)
	} else if v.Enforces {
		return err
	}
	return nil
}

// look decides about a session without the fleet. It returns the session if it runs and needs no
// answer, or an error. Otherwise the session may begin, and look returns the other sessions of the viewer
// if their number is limited.
func (t *Tracker) look(s *Session, v Visit) (siblings []*Session, known *Session, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	running := t.running(s.key)
	if running != nil && !v.mustAsk(running) {
		return nil, running, nil
	}
	of := t.viewerOf(s, v.Viewer)
	switch {
	case of.listsEnded(s.id):
		return nil, nil, ErrEnded
	case running != nil || t.hasRoom(of, s.origin):
	case !v.mustCount():
		return nil, t.letPass(s), nil
	case v.Asks:
		return nil, nil, ErrLimit
	}
	if v.mustCount() {
		siblings = slices.Clone(of.running[:min(len(of.running), beatBatch)])
	}
	return siblings, nil, nil
}

// mustCount reports whether a session plays only if it is counted, because nothing else holds
// what it may.
func (v Visit) mustCount() bool { return v.Limit > 0 || v.Asks }

// running returns the session with a key, and ends it if its time has come. The caller holds
// the mutex.
func (t *Tracker) running(key Key) *Session {
	s := t.session(key)
	if s == nil {
		return nil
	}
	if why, ended := t.ended(s); ended {
		t.end(s, why)
		return nil
	}
	return s
}

// letPass lets a session play for which the node has no room.
func (t *Tracker) letPass(s *Session) *Session {
	t.config.Dropped(DroppedSession)
	s.tracker = nil
	return s
}

// admitAlone begins a session as this node alone decides.
func (t *Tracker) admitAlone(s *Session, v Visit) (*Session, error) {
	return t.admit(s, v, func(of *viewer) error {
		if !v.Begins && of.hasEnded(s.id, s.begun) {
			return ErrEnded
		}
		return t.makeRoom(of, s)
	})
}

// admit begins a session on this node, unless an error says that the viewer may not.
func (t *Tracker) admit(s *Session, v Visit, may func(*viewer) error) (*Session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if known := t.running(s.key); known != nil {
		if v.mustAsk(known) {
			known.accept(Terms{s.granted, s.Ends()}, true)
		}
		return known, nil
	}
	of := t.viewerOf(s, v.Viewer)
	if err := may(of); err != nil {
		return nil, err
	}
	if !t.hasRoom(of, s.origin) {
		if v.mustCount() {
			return nil, ErrLimit
		}
		return t.letPass(s), nil
	}
	t.add(of, s)
	return s, nil
}

// remember notes until a time, in Unix seconds, that a session has ended, as the fleet says. The
// caller holds the mutex.
func (t *Tracker) remember(key viewerKey, id ID, begun, until int64) {
	of := t.viewers[key]
	if of == nil {
		if len(t.viewers) >= 2*t.capacity {
			return
		}
		of = &viewer{key: key}
		t.viewers[key] = of
	}
	of.end(id, begun, until)
}

func (t *Tracker) newSession(v Visit) *Session {
	s := &Session{
		tracker: t, key: v.Key, id: v.Key.ID(), video: strings.Clone(v.Video), limit: v.Limit, origin: networkOf(v.Address),
		begun: t.config.Now().UnixMilli(), userAgent: ShortUserAgent(v.Client.UserAgent()),
	}
	if !v.Begins && !v.Begun.IsZero() {
		s.begun = min(s.begun, v.Begun.UnixMilli())
	}
	s.seen.Store(t.elapsed())
	s.asked.Store(-int64(time.Second))
	s.renew(v.Expires)
	s.moveTo(s.origin, v.Client.Country())
	return s
}

// viewerOf returns the record of the viewer of a session.
func (t *Tracker) viewerOf(s *Session, name string) *viewer {
	key := s.viewerKey(name)
	of := t.viewers[key]
	if of == nil {
		of = &viewer{key: key}
	}
	if of.name == "" {
		of.name = shortName(name, key)
	}
	return of
}

// makeRoom ends sessions of a viewer until a new one has room within its limit.
func (t *Tracker) makeRoom(of *viewer, s *Session) error {
	replaced, err := t.replacedBy(s, of)
	for _, other := range replaced {
		if t.policy.Load().RefuseNew {
			t.end(other, TakenOver)
		} else {
			t.end(other, Replaced)
		}
	}
	return err
}

// replacedBy returns the sessions of a viewer whose place a new one takes.
func (t *Tracker) replacedBy(s *Session, of *viewer) ([]*Session, error) {
	if s.limit <= 0 || len(of.running) < s.limit {
		return nil, nil
	}
	t.endSilent(of)
	excess := len(of.running) - s.limit + 1
	switch {
	case excess <= 0:
		return nil, nil
	case !t.policy.Load().RefuseNew:
		return slices.SortedFunc(slices.Values(of.running), olderFirst)[:excess], nil
	}
	if twin := t.silentTwin(of, s); twin != nil && excess == 1 {
		return []*Session{twin}, nil
	}
	return nil, ErrLimit
}

// silentTwin returns a session of the same client as a new one, which is probably that
// client before it was restarted.
func (t *Tracker) silentTwin(of *viewer, s *Session) *Session {
	for _, running := range of.running {
		if s.origin != 0 && running.at(s.origin) && running.userAgent == s.userAgent && t.silent(running, silence) {
			return running
		}
	}
	return nil
}

// hasRoom reports whether the node has room for one more session.
func (t *Tracker) hasRoom(of *viewer, from network) bool {
	share, count := t.capacity/fairShare, t.Count()
	return count < t.capacity/2 ||
		count < t.capacity && len(of.running) < share && t.networks[from] < share
}

// add puts a session into the registry.
func (t *Tracker) add(of *viewer, s *Session) {
	s.viewer = of
	of.add(s)
	t.viewers[of.key] = of
	t.networks[s.origin]++
	t.sessions.Set(s.key, s)
	t.noteUse(s, s.origin)
}

// end takes a session out of the registry.
func (t *Tracker) end(s *Session, reason Reason) {
	t.sessions.Invalidate(s.key)
	of := s.viewer
	of.remove(s)
	if t.networks[s.origin]--; t.networks[s.origin] == 0 {
		delete(t.networks, s.origin)
	}
	if reason != TimedOut && reason != Stopped {
		of.end(s.id, s.begun, t.memorable(s))
	}
	if len(of.running) == 0 && (of.endedUntil == 0 || len(t.viewers) > 2*t.capacity) {
		t.forgetViewer(of)
	}
	if len(t.endings) < maxEndings {
		t.endings = append(t.endings, ending{Event{t.info(s), t.config.Now(), reason}, of.key, s.bytes.Load() - s.toldBytes})
	} else {
		t.config.Dropped(DroppedEnd)
	}
}

func (t *Tracker) forgetViewer(of *viewer) {
	delete(t.viewers, of.key)
	t.forgetTrace(of)
}

// endSilent ends the sessions of a viewer whose time has come.
func (t *Tracker) endSilent(of *viewer) {
	for _, s := range slices.Clone(of.running) {
		if why, ended := t.ended(s); ended {
			t.end(s, why)
		}
	}
}

// info describes a session. The caller holds the mutex.
func (t *Tracker) info(s *Session) Info {
	return Info{
		ID: s.id, Viewer: s.viewer.name, Video: s.video, Started: time.UnixMilli(s.begun),
		LastSeen: t.config.Now().Add(-time.Duration(t.elapsed() - s.seen.Load())),
		Country:  s.country.String(), Network: s.place().prefix(), UserAgent: s.userAgent, Bytes: s.bytes.Load(), Shared: s.shared, Expires: unixTime(s.expires.Load()), Ends: s.Ends(),
	}
}

// Run does the work that no request waits for, until the context ends: it ends sessions
// that are silent, tells of ends, and follows the fleet.
func (t *Tracker) Run(ctx context.Context) {
	var wake <-chan struct{}
	if t.fleet != nil {
		wake = t.fleet.wake
		go t.listen(ctx)
	}
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	defer close(t.done)
	for {
		hurry := false
		select {
		case <-tick.C:
		case <-wake:
			hurry = true
		case <-ctx.Done():
			return
		}
		t.work(ctx, hurry)
	}
}

// work is one turn of Run.
func (t *Tracker) work(ctx context.Context, hurry bool) {
	t.sweep()
	var orphans []Event
	if t.fleet != nil {
		orphans = t.followFleet(ctx, hurry)
	}
	t.mu.Lock()
	ended, reports, uses := t.endings, t.reports, t.uses
	t.endings, t.reports, t.uses = nil, nil, make(map[usedBy]use)
	t.mu.Unlock()
	if len(uses) > 0 {
		reports = append(reports, t.scoreInFleet(ctx, slices.Collect(maps.Values(uses)))...)
	}
	if len(reports) > 0 {
		t.config.Shared(reports)
	}
	for _, event := range append(t.settle(ctx, ended), orphans...) {
		t.config.Ended(event)
	}
}

// followFleet tells of all sessions if there may be news of them, every ten seconds of those that were
// used, and otherwise asks only whether the Redis has lost its data. It returns the ends that a
// killed node cannot tell.
func (t *Tracker) followFleet(ctx context.Context, hurry bool) (orphans []Event) {
	due := t.config.Now().Sub(t.fleet.beat) >= beatInterval
	switch {
	case hurry || t.fleet.away.Load():
		t.tellFleet(ctx, slices.Collect(t.sessions.Values()))
	case due:
		t.tellFleet(ctx, t.untold())
	default:
		t.tellFleet(ctx, nil)
	}
	if !due || t.fleet.away.Load() {
		return nil
	}
	t.fleet.beat = t.config.Now()
	return t.orphans(ctx)
}

// Stop waits for the end of Run and then tells of what runs: to the fleet, where sessions go on, or
// as ends of sessions. No request may come after it.
func (t *Tracker) Stop() {
	<-t.done
	if t.fleet != nil {
		t.tellFleet(context.Background(), t.untold())
		return
	}
	for _, info := range t.list(t.sessions.Values(), func(*Session) bool { return true }) {
		t.config.Ended(Event{info, t.config.Now(), Stopped})
	}
}

// sweep ends sessions whose time has come or that are revoked, and forgets ended ones whose tokens have expired.
func (t *Tracker) sweep() {
	revoked := t.config.Revoked()
	over := func(s *Session) (why Reason, ended bool) {
		if revoked != nil && revoked(s.id) {
			return Deleted, true
		}
		return t.ended(s)
	}
	t.each(t.sessions.Values(), func(s *Session) bool { _, ended := over(s); return ended }, func(s *Session) {
		if why, ended := over(s); ended {
			t.end(s, why)
		}
	})
	now := t.config.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.forgotten) < time.Minute {
		return
	}
	t.forgotten = now
	for _, of := range t.viewers {
		if !t.movedLately(of) {
			t.forgetTrace(of)
		}
		if of.endedUntil > now.Unix() || of.endedUntil == 0 {
			continue
		}
		of.ended, of.endedThrough, of.endedUntil = nil, 0, 0
		if len(of.running) == 0 {
			t.forgetViewer(of)
		}
	}
}

// Count returns how many sessions run on this node.
func (t *Tracker) Count() int { return t.sessions.EstimatedSize() }

// ListVideo returns the running sessions of a video, of the whole fleet.
func (t *Tracker) ListVideo(ctx context.Context, video string) ([]Info, error) {
	if t.fleet != nil {
		return t.listInFleet(ctx, "video:"+video)
	}
	return t.list(t.sessions.Values(), func(s *Session) bool { return s.video == video }), nil
}

// ListViewer returns the running sessions of a viewer, of the whole fleet.
func (t *Tracker) ListViewer(ctx context.Context, name string) ([]Info, error) {
	key := keyOfViewer(name)
	if t.fleet != nil {
		return t.listInFleet(ctx, "seen:"+key.String())
	}
	return t.list(t.sessions.Values(), func(s *Session) bool { return s.viewer.key == key }), nil
}

// CountVideo returns how many sessions of a video run, in the whole fleet, or on this node
// while the fleet cannot be asked.
func (t *Tracker) CountVideo(ctx context.Context, video string) int64 {
	t.mu.Lock()
	c, known := t.counts[video]
	t.mu.Unlock()
	if known && t.elapsed()-c.at < int64(countInterval) {
		return c.n
	}
	c = count{t.countVideo(ctx, video), t.elapsed()}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.counts) >= maxCounts {
		clear(t.counts)
	}
	t.counts[video] = c
	return c.n
}

// CountVideos returns how many sessions of each video run, in the whole fleet. A video without
// one is not in the result.
func (t *Tracker) CountVideos(ctx context.Context) (map[string]int64, error) {
	if t.fleet != nil {
		return t.countAllInFleet(ctx)
	}
	return t.countHere(), nil
}

// countHere returns how many sessions of each video run on this node.
func (t *Tracker) countHere() map[string]int64 {
	counts := make(map[string]int64)
	for s := range t.sessions.Values() {
		if !t.silent(s, t.policy.Load().Timeout) {
			counts[s.video]++
		}
	}
	return counts
}

// count is how many sessions of a video ran at a time of the tracker's clock. Anybody may ask
// for those of an open video, so a count is used again for countInterval.
type count struct{ n, at int64 }

const (
	maxCounts     = 1000
	countInterval = 500 * time.Millisecond
)

func (t *Tracker) countVideo(ctx context.Context, video string) int64 {
	if t.fleet != nil && !t.fleet.away.Load() {
		if answer, err := t.run(ctx, countScript, video); err == nil {
			n, _ := strconv.ParseInt(answer[0], 10, 64)
			return n
		}
	}
	return t.countHere()[video]
}

// list describes those of some running sessions of this node that a filter accepts.
func (t *Tracker) list(of iter.Seq[*Session], accept func(*Session) bool) (list []Info) {
	t.each(of, accept, func(s *Session) { list = append(list, t.info(s)) })
	return list
}

// each runs a function, with the mutex locked, on those of some sessions that run on this node and
// that a filter accepts.
func (t *Tracker) each(of iter.Seq[*Session], accept func(*Session) bool, do func(*Session)) {
	for s := range of {
		if !accept(s) {
			continue
		}
		t.mu.Lock()
		if t.session(s.key) == s {
			do(s)
		}
		t.mu.Unlock()
	}
}

// Find returns a running session of the fleet.
func (t *Tracker) Find(ctx context.Context, id ID) (info Info, found bool, err error) {
	return t.find(ctx, t.sessions.Values(), id)
}

// FindKey does so at the request of a viewer, who may send any keys: it looks at no other
// session of this node.
func (t *Tracker) FindKey(ctx context.Context, key Key) (info Info, found bool, err error) {
	known := slices.DeleteFunc([]*Session{t.session(key)}, func(s *Session) bool { return s == nil })
	return t.find(ctx, slices.Values(known), key.ID())
}

func (t *Tracker) find(ctx context.Context, among iter.Seq[*Session], id ID) (info Info, found bool, err error) {
	if found := t.list(among, func(s *Session) bool { return s.id == id }); len(found) > 0 {
		return found[0], true, nil
	}
	return t.findInFleet(ctx, id)
}

// End ends running sessions of the fleet for good.
func (t *Tracker) End(ctx context.Context, ids ...ID) error {
	wanted := make(map[ID]bool, len(ids))
	for _, id := range ids {
		wanted[id] = true
	}
	t.each(t.sessions.Values(), func(s *Session) bool { return wanted[s.id] }, func(s *Session) {
		t.end(s, Deleted)
		delete(wanted, s.id)
	})
	if t.fleet == nil {
		return nil
	}
	for batch := range slices.Chunk(ids, beatBatch) {
		args := make([]any, len(batch))
		for i, id := range batch {
			args[i] = id
		}
		if _, err := t.run(ctx, endScript, args...); err != nil && len(wanted) > 0 {
			return err
		}
	}
	return nil
}

// Extend tells a running session of this node until when it may play, whatever its token says.
func (t *Tracker) Extend(id ID, until time.Time) {
	t.each(t.sessions.Values(), func(s *Session) bool { return s.id == id }, func(s *Session) {
		s.extend(until)
		s.asked.Store(t.elapsed())
	})
}
