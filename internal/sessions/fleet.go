package sessions

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

const (
	// beatInterval is how often a node tells of its sessions that were used since.
	beatInterval = 10 * time.Second

	// startTimeout is how long the start of a session waits for the Redis. Then the
	// node decides by itself. Other calls take callTimeout at most.
	startTimeout = time.Second
	callTimeout  = 2 * time.Second

	// orphaned is how long after its timeout a session has no node that tells its end. A node that
	// runs has told it by then.
	orphaned = 2 * beatInterval

	beatBatch = 100 // sessions of one script, which no other call can interrupt
)

// ErrUnavailable is the error of calls that ask the Redis, if it does not answer.
var ErrUnavailable = errors.New("sessions: the redis that the fleet shares does not answer")

// Redis has the calls that a Tracker makes. A call may end later than its context.
type Redis interface {
	Run(ctx context.Context, script *rueidis.Lua, key string, args []string) (rueidis.RedisMessage, error)
	Subscribe(ctx context.Context, channel string, subscribed func(), received func(message string)) error
}

// fleet has the knowledge of a node about the other nodes.
type fleet struct {
	redis Redis
	node  string // random: another one after a restart

	// away says that the Redis has not answered the last beat, so that starts do not
	// wait for it.
	away atomic.Bool
	wake chan struct{} // receives when a beat should not wait for its time
	beat time.Time     // when the last one was due; of Run only
}

func newFleet(redis Redis) *fleet {
	if redis == nil {
		return nil
	}
	return &fleet{redis: redis, node: rand.Text(), wake: make(chan struct{}, 1)}
}

// hurry has the next beat come at once.
func (f *fleet) hurry() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// run runs a script, and returns its answer as texts.
func (t *Tracker) run(ctx context.Context, script *rueidis.Lua, args ...any) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	texts := append(make([]string, 0, 2+len(args)), fmt.Sprint(t.policy.Load().Timeout.Milliseconds()), t.fleet.node)
	for _, arg := range args {
		switch arg {
		case true:
			arg = 1
		case false:
			arg = 0
		}
		texts = append(texts, fmt.Sprint(arg))
	}
	reply, err := t.fleet.redis.Run(ctx, script, fleetKey, texts)
	if err != nil {
		t.config.CountError()
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if n, err := reply.AsInt64(); err == nil {
		return []string{strconv.FormatInt(n, 10)}, nil
	}
	answer, err := reply.AsStrSlice()
	if err != nil {
		t.config.CountError()
		return nil, fmt.Errorf("%w: not an answer of the script", ErrUnavailable)
	}
	return answer, nil
}

// numbers reads the numbers of an answer.
func numbers(texts ...string) (list []int64, err error) {
	for _, text := range texts {
		n, wrong := strconv.ParseInt(text, 10, 64)
		list, err = append(list, n), cmp.Or(err, wrong)
	}
	return list, err
}

// description is what Redis keeps of a session for lists.
type description struct {
	Viewer    string `json:"viewer"`
	Video     string `json:"video"`
	Country   string `json:"country"`
	Network   string `json:"network"`
	UserAgent string `json:"userAgent"`
	Shared    bool   `json:"shared"`
	Expires   int64  `json:"expires"` // Unix seconds, 0 without a token

	// The terms of its start, which hold on every node.
	Granted  int   `json:"granted,omitempty"`
	Ends     int64 `json:"ends,omitempty"`
	Admitted bool  `json:"admitted,omitempty"`
}

// describe returns the description of a session. The caller holds the mutex, or is the
// only one that knows the session.
func (s *Session) describe(viewer string) string {
	network := ""
	if from := s.place().prefix(); from.IsValid() {
		network = from.String()
	}
	text, _ := json.Marshal(description{ // nothing of it can fail
		viewer, s.video, s.country.String(), network, s.userAgent, s.shared, max(0, s.expires.Load()), s.granted, s.ends.Load(), s.admitted.Load(),
	})
	return string(text)
}

// left returns the seconds for which the end of the session matters.
func (t *Tracker) left(s *Session) int64 { return max(1, t.memorable(s)-t.config.Now().Unix()) }

// ago returns how many milliseconds ago a session was last used.
func (t *Tracker) ago(s *Session) int64 {
	return max(0, (t.elapsed()-s.seen.Load())/int64(time.Millisecond))
}

// startInFleet asks whether a session may begin. siblings are the viewer's sessions on this
// node: of those the fleet knows only what the last beat has told. If the session is unasked,
// it only resumes one that runs on another node, or the error is errUnasked.
func (t *Tracker) startInFleet(ctx context.Context, s *Session, v Visit, siblings []*Session, unasked bool) error {
	// A client that cancels must not have the node decide alone, or take the Redis for away.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	begun := int64(0)
	if !v.Begins && !v.Begun.IsZero() {
		begun = s.begun
	}
	viewer := s.viewerKey(v.Viewer)
	args := append(make([]any, 0, 10+2*len(siblings)),
		s.id, viewer, s.video, begun, v.Begins, max(0, s.limit), t.policy.Load().RefuseNew, t.left(s), s.describe(shortName(v.Viewer, viewer)), unasked)
	for _, sibling := range siblings {
		args = append(args, sibling.id, t.ago(sibling))
	}
	answer, err := t.run(ctx, startScript, args...)
	if err != nil {
		return err
	}
	switch answer[0] {
	case "ended":
		return ErrEnded
	case "limit":
		return ErrLimit
	case "unasked":
		return errUnasked
	}
	var has description
	s.begun, err = strconv.ParseInt(answer[1], 10, 64)
	if err := errors.Join(err, json.Unmarshal([]byte(answer[2]), &has)); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	s.accept(Terms{has.Granted, unixTime(has.Ends)}, has.Admitted)
	s.told = s.seen.Load()
	switch {
	case t.isOver(s):
		return ErrEnded
	case v.mustAsk(s):
		return errUnasked
	}
	return nil
}

// tellFleet tells of sessions and hears which have ended. A Redis that has lost its data is told
// everything: first what has ended, so that it cannot begin again.
func (t *Tracker) tellFleet(ctx context.Context, used []*Session) {
	lost, err := t.beat(ctx, used, false)
	if err == nil && (lost || t.fleet.away.Load()) {
		err = t.restore(ctx)
	}
	if err == nil && lost {
		_, err = t.beat(ctx, slices.Collect(t.sessions.Values()), true)
	}
	if was := t.fleet.away.Swap(err != nil); was != (err != nil) {
		t.config.Away(err)
	}
}

// untold returns the sessions that were used since the last beat.
func (t *Tracker) untold() (used []*Session) {
	for s := range t.sessions.Values() {
		if s.seen.Load() > s.told {
			used = append(used, s)
		}
	}
	return used
}

// beat tells of sessions in batches, and asks at least whether the data is there: lost says that the
// Redis does not know this node, and has taken nothing down. all says that it is told everything.
func (t *Tracker) beat(ctx context.Context, used []*Session, all bool) (lost bool, err error) {
	for {
		batch := used[:min(len(used), beatBatch)]
		answer, err := t.beatBatch(ctx, batch, all)
		if err != nil || slices.Contains(answer, "lost") {
			return err == nil, err
		}
		t.each(slices.Values(batch), func(s *Session) bool { return slices.Contains(answer, s.id.String()) }, func(s *Session) { t.end(s, Replaced) })
		if !slices.Contains(answer, "more") {
			used = used[len(batch):]
		}
		if len(used) == 0 {
			return false, nil
		}
	}
}

func (t *Tracker) beatBatch(ctx context.Context, batch []*Session, all bool) ([]string, error) {
	refuseNew, args := t.policy.Load().RefuseNew, append(make([]any, 0, 1+10*len(batch)), all)
	seen, bytes := make([]int64, len(batch)), make([]int64, len(batch))
	t.mu.Lock()
	for i, s := range batch {
		seen[i], bytes[i] = s.seen.Load(), s.bytes.Load()
		args = append(args, s.id, s.viewer.key, s.video, s.begun, t.ago(s), max(0, s.limit), refuseNew, t.left(s), bytes[i]-s.toldBytes, s.describe(s.viewer.name))
	}
	t.mu.Unlock()
	answer, err := t.run(ctx, beatScript, args...)
	if err != nil || slices.Contains(answer, "lost") {
		return answer, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, s := range batch {
		s.told, s.toldBytes = seen[i], bytes[i]
	}
	return answer, nil
}

// restore writes the ended sessions that this node knows back.
func (t *Tracker) restore(ctx context.Context) error {
	now := t.config.Now().Unix()
	var ended []any
	t.mu.Lock()
	for _, of := range t.viewers {
		for _, e := range of.ended {
			if of.endedUntil > now {
				ended = append(ended, of.key, e.id, e.begun, of.endedUntil-now, of.endedThrough)
			}
		}
	}
	t.mu.Unlock()
	for batch := range slices.Chunk(ended, 5*beatBatch) {
		if _, err := t.run(ctx, restoreScript, batch...); err != nil {
			return err
		}
	}
	return nil
}

// listen ends sessions as other nodes tell, until the context ends.
func (t *Tracker) listen(ctx context.Context) {
	for ctx.Err() == nil {
		_ = t.fleet.redis.Subscribe(ctx, fleetChannel, t.fleet.hurry, t.hear) // the beat notices that it is away
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

// hear takes a message of fleetChannel.
func (t *Tracker) hear(message string) {
	fields := strings.Fields(message)
	if len(fields) != 5 {
		return
	}
	var viewer viewerKey
	id, idErr := ParseID(fields[1])
	_, viewerErr := hex.Decode(viewer[:], []byte(fields[0][:min(len(fields[0]), 2*len(viewer))]))
	n, err := numbers(fields[2:4]...) // its beginning, and the seconds for which it matters
	if errors.Join(idErr, viewerErr, err) != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if of := t.viewers[viewer]; of != nil {
		if running := slices.IndexFunc(of.running, func(s *Session) bool { return s.id == id }); running >= 0 {
			t.end(of.running[running], Reason(fields[4]).known())
		}
	}
	t.remember(viewer, id, n[0], t.config.Now().Unix()+n[1])
}

// settle returns the events of sessions that have ended here, with the bytes of all nodes
// and without those that go on elsewhere.
func (t *Tracker) settle(ctx context.Context, ended []ending) (events []Event) {
	for batch := range slices.Chunk(ended, beatBatch) {
		totals := t.totals(ctx, batch)
		for i, e := range batch {
			if totals == nil || totals[i] == "" {
				events = append(events, e.Event)
				continue
			}
			if total, err := strconv.ParseInt(totals[i], 10, 64); err == nil && total >= 0 {
				e.Bytes = total
				events = append(events, e.Event)
			}
		}
	}
	return events
}

// orphans returns the ends of sessions that a killed node cannot tell. Each is told by one node.
func (t *Tracker) orphans(ctx context.Context) (events []Event) {
	for {
		answer, err := t.run(ctx, orphansScript, orphaned.Milliseconds())
		if err != nil || len(answer) == 0 {
			return events
		}
		const fields = 6
		for orphan := range slices.Chunk(answer, fields) {
			if info, err := t.parseInfo(orphan[:len(orphan)-1]); err == nil {
				events = append(events, Event{info, t.config.Now(), Reason(orphan[fields-1]).known()})
			}
		}
	}
}

// totals asks for the bytes of ended sessions. It is nil without a fleet that answers.
func (t *Tracker) totals(ctx context.Context, batch []ending) []string {
	if t.fleet == nil || t.fleet.away.Load() {
		return nil
	}
	var args []any
	for _, e := range batch {
		args = append(args, e.ID, e.viewer, e.Reason, e.untold)
	}
	totals, err := t.run(ctx, settleScript, args...)
	if err != nil || len(totals) != len(batch) {
		t.fleet.hurry()
		return nil
	}
	return totals
}

// listInFleet returns the running sessions of an index.
func (t *Tracker) listInFleet(ctx context.Context, index string) (list []Info, err error) {
	for place := "0"; place != ""; {
		answer, err := t.run(ctx, listScript, index, place)
		if err != nil {
			return nil, err
		}
		place = answer[0]
		for fields := range slices.Chunk(answer[1:], 5) {
			info, err := t.parseInfo(fields)
			if err != nil {
				return nil, err
			}
			list = append(list, info)
		}
	}
	slices.SortFunc(list, func(a, b Info) int { return strings.Compare(a.ID.String(), b.ID.String()) })
	return slices.CompactFunc(list, func(a, b Info) bool { return a.ID == b.ID }), nil
}

// countAllInFleet returns how many sessions of each video run.
func (t *Tracker) countAllInFleet(ctx context.Context) (map[string]int64, error) {
	counts := make(map[string]int64)
	for place := "0"; place != ""; {
		answer, err := t.run(ctx, countAllScript, place)
		if err != nil {
			return nil, err
		}
		place = answer[0]
		for fields := range slices.Chunk(answer[1:], 2) {
			n, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
			}
			if n > 0 { // a video stays in the list for a while
				counts[fields[0]] = n
			}
		}
	}
	return counts, nil
}

// findInFleet returns a running session.
func (t *Tracker) findInFleet(ctx context.Context, id ID) (info Info, found bool, err error) {
	if t.fleet == nil {
		return Info{}, false, nil
	}
	answer, err := t.run(ctx, findScript, id)
	if err != nil || len(answer) == 0 {
		return Info{}, false, err
	}
	info, err = t.parseInfo(answer)
	return info, err == nil, err
}

// parseInfo reads a session of listScript. Its errors wrap ErrUnavailable.
func (t *Tracker) parseInfo(fields []string) (info Info, err error) {
	if len(fields) != 5 {
		return Info{}, fmt.Errorf("%w: part of a session", ErrUnavailable)
	}
	var has description
	id, idErr := ParseID(fields[0])
	n, err := numbers(fields[1:4]...) // how long ago it was used, its beginning, bytes
	if err := errors.Join(idErr, err, json.Unmarshal([]byte(fields[4]), &has)); err != nil {
		return Info{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	network, _ := netip.ParsePrefix(has.Network)
	return Info{
		ID: id, Viewer: has.Viewer, Video: has.Video, Started: time.UnixMilli(n[1]), LastSeen: t.config.Now().Add(-time.Duration(n[0]) * time.Millisecond),
		Country: has.Country, Network: network, UserAgent: has.UserAgent, Bytes: n[2], Shared: has.Shared, Expires: unixTime(has.Expires), Ends: unixTime(has.Ends),
	}, nil
}
