package state

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

// revocation makes a revocation of words like "uid ann", in force until an hour after
// testTime.
func revocation(words string) *Revocation {
	selector, value, _ := strings.Cut(words, " ")
	return &Revocation{Selector: Selector(selector), Value: value, Expires: testTime.Add(time.Hour).Unix()}
}

// refuse makes revocations and returns the id of the first.
func refuse(t *testing.T, s *testState, words ...string) string {
	t.Helper()
	list := make([]*Revocation, len(words))
	for i, each := range words {
		list[i] = revocation(each)
	}
	if err := s.Refuse(context.Background(), list); err != nil {
		t.Errorf("Refuse(%q) = %v", words, err)
	}
	return list[0].ID
}

// isRevoked returns "revoked", "allowed" or "unknown" for words like "uid ann".
func isRevoked(s *testState, words string) string {
	all := s.Revocations()
	if all == nil {
		return "unknown"
	}
	selector, value, _ := strings.Cut(words, " ")
	subject := map[Selector]Subject{SelectJTI: {ID: value}, SelectViewer: {Viewer: value}, SelectVideo: {Video: value}}[Selector(selector)]
	if all.Match(subject, s.now()) != nil || selector == string(SelectSession) && all.Session(value, s.now()) != nil {
		return "revoked"
	}
	return "allowed"
}

func wantRevoked(t *testing.T, s *testState, want string, words ...string) {
	t.Helper()
	for _, each := range words {
		if got := isRevoked(s, each); got != want {
			t.Errorf("%s is %s, want it %s", each, got, want)
		}
	}
}

// fleetAt returns a store with one node, whose clock stands at testTime.
func fleetAt(t *testing.T) (*fleet, *node, *testState, *time.Time) {
	t.Helper()
	f, n, s := fleetWith(t)
	return f, n, s, s.setTime()
}

func join(t *testing.T, f *fleet) *testState {
	t.Helper()
	s := newTestState(t, f.Join())
	s.setTime()
	return s
}

// inForce returns what requests see of some revocations.
func inForce(list ...*Revocation) *Revocations {
	r := newRevocations()
	r.commit(nil, nil)
	for i, each := range list {
		each.ID = fmt.Sprint(i)
	}
	r.add(list)
	return r.inForce.Load()
}

// Each selector refuses what it names, and nothing else: a token that was issued later, a
// revocation that is over and the same text in another claim do not count.
func TestRevocationsMatch(t *testing.T) {
	t.Parallel()
	compact := "a.b.c"
	now := testTime
	subject := Subject{Token: compact, ID: "j", Viewer: "ann", Video: "demo", IssuedAt: now.Unix()}
	edit := func(change func(*Subject)) Subject {
		changed := subject
		change(&changed)
		return changed
	}
	without := edit(func(s *Subject) { s.IssuedAt = time.Time{}.Unix() })
	later := edit(func(s *Subject) { s.IssuedAt++ })
	before, past := now.Unix(), now.Unix()
	for _, tc := range []struct {
		name         string
		selector     Selector
		value        string
		issuedBefore int64
		expires      int64
		subject      Subject
		want         bool
	}{
		{"the token", SelectToken, DigestOfToken(compact), 0, past + 1, subject, true},
		{"another token", SelectToken, DigestOfToken("a.b.d"), 0, past + 1, subject, false},
		{"the text of the token, which nobody stores", SelectToken, compact, 0, past + 1, subject, false},
		{"the jti", SelectJTI, "j", 0, past + 1, subject, true},
		{"a jti in capitals", SelectJTI, "J", 0, past + 1, subject, false},
		{"the jti of a viewer", SelectJTI, "ann", 0, past + 1, subject, false},
		{"the viewer, in the second of the revocation", SelectViewer, "ann", before, past + 1, subject, true},
		{"the viewer, a second later", SelectViewer, "ann", before, past + 1, later, false},
		{"the viewer, without a date", SelectViewer, "ann", before, past + 1, without, true},
		{"a token without a viewer", SelectViewer, "ann", before, past + 1, edit(func(s *Subject) { s.Viewer = "" }), false},
		{"the video", SelectVideo, "demo", before, past + 1, without, true},
		{"a video issued later", SelectVideo, "demo", before, past + 1, later, false},
		{"another video", SelectVideo, "demo", before, past + 1, edit(func(s *Subject) { s.Video = "dem" }), false},
		{"a session of the same name", SelectSession, "j", 0, past + 1, subject, false},
		{"in its last second", SelectJTI, "j", 0, past, subject, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			one := &Revocation{Selector: tc.selector, Value: tc.value, IssuedBefore: tc.issuedBefore, Expires: tc.expires}
			over := *one
			over.Expires = 1
			for _, all := range [][]*Revocation{{one}, {&over, one}, {one, &over}} {
				if got := inForce(all...).Match(tc.subject, now); (got != nil) != tc.want || got != nil && got != one {
					t.Errorf("with %d revocations: %v, want %t", len(all), got, tc.want)
				}
			}
		})
	}
	all := inForce(&Revocation{Selector: SelectSession, Value: "s", Expires: past + 1}, &Revocation{Selector: SelectSession, Value: "over", Expires: past})
	if !all.HasSessions() || all.Session("s", now) == nil || all.Session("over", now) != nil || all.Session("t", now) != nil || len(all.Live(now)) != 1 {
		t.Error("want the session alone revoked")
	}
}

// A revocation is in force on its own node at once, and on the others with the next look.
// It is over when it expires.
func TestRevocationsAreFollowed(t *testing.T) {
	t.Parallel()
	f, _, a, clock := fleetAt(t)
	b := join(t, f)
	before := a.Revocations()
	id := refuse(t, a, "uid ann", "session s")
	if a.Revocations() == before || !a.Revocations().HasSessions() || before.HasSessions() {
		t.Error("a token that was not revoked before is not looked up again")
	}
	wantRevoked(t, a, "revoked", "uid ann", "session s")
	wantRevoked(t, a, "allowed", "uid bob", "jti ann")
	b.Sync(t.Context())
	wantRevoked(t, b, "revoked", "uid ann", "session s")
	wantRevoked(t, join(t, f), "revoked", "uid ann", "session s")
	if known, err := b.TakeBack(t.Context(), id); !known || err != nil {
		t.Fatalf("TakeBack = %t, %v", known, err)
	}
	for _, gone := range []string{id, "", "x"} {
		if known, err := b.TakeBack(t.Context(), gone); known || err != nil {
			t.Errorf("TakeBack(%q) = %t, %v, want none", gone, known, err)
		}
	}
	wantRevoked(t, b, "allowed", "uid ann")
	a.Sync(t.Context())
	wantRevoked(t, a, "allowed", "uid ann")
	wantRevoked(t, a, "revoked", "session s")
	wantRevoked(t, join(t, f), "allowed", "uid ann")
	*clock = clock.Add(time.Hour)
	wantRevoked(t, a, "allowed", "session s")
	if a.mergeBatches(t.Context()); len(a.revocations.records)+len(a.revocations.found)+a.revocations.sessions != 0 {
		t.Error("revocations that are over stay in memory")
	}
}

// The attack: a store that has lost revocations, by an accident or on purpose, gives a
// revoked token back. Whatever happens to the store, a node that knows the revocation
// keeps it, and nodes that start later know it too. The same is true of a revocation
// that is taken back: nothing brings it back.
func TestRevocationsNeverChangeByThemselves(t *testing.T) {
	t.Parallel()
	for _, attack := range []string{
		"backup revoke restore", "revoke lose-everything", "revoke damage", "revoke remove", "revoke sync lose-everything sync",
		"revoke-elsewhere sync lose-everything", "backup revoke-elsewhere sync restore", "revoke unreadable sync readable", "revoke long-outage readable",
		"read-during-which-revoke", "backup revoke clock-ahead sync restore clock-back", "revoke clock-ahead merge clock-back",
		"revoke backup take-back restore", "revoke backup take-back lose-everything", "revoke backup take-back restore sync restore", "revoke backup take-back long-outage restore readable",
	} {
		t.Run(attack, func(t *testing.T) {
			t.Parallel()
			f, n, s, clock := fleetAt(t)
			other := join(t, f)
			old, id := f.Backup(), ""
			now := *clock
			steps := map[string]func(){
				"backup":           func() { old = f.Backup() },
				"restore":          func() { f.Restore(old) },
				"revoke":           func() { id = refuse(t, s, "uid ann", "uid bob") },
				"revoke-elsewhere": func() { refuse(t, other, "uid ann") },
				"take-back": func() {
					if known, err := s.TakeBack(t.Context(), id); !known || err != nil {
						t.Errorf("TakeBack = %t, %v", known, err)
					}
				},
				"damage": func() {
					for name := range f.Backup() {
						f.Write(name, damaged)
					}
				},
				"remove": func() {
					for name := range f.Backup() {
						f.Write(name, "")
					}
				},
				"lose-everything": func() { f.Restore(nil) },
				"unreadable": func() {
					f.Restore(f.Backup())
					s.revocations.readAllAt = time.Time{}
					n.Intercept(on("read", "", down), nil)
				},
				"readable":    func() { n.Intercept(nil, nil) },
				"sync":        func() { s.Sync(t.Context()) },
				"merge":       func() { s.mergeBatches(t.Context()) },
				"clock-ahead": func() { *clock = afterJump(time.Now(), 10*365*24*time.Hour) },
				"clock-back":  func() { *clock = now },
				"long-outage": func() {
					n.Intercept(down, nil)
					s.since = s.since.Add(-maxStale - time.Second)
					s.Sync(t.Context())
					if !s.KeysKnown() {
						wantRevoked(t, s, "unknown", "uid ann")
					}
				},
				"read-during-which-revoke": func() {
					f.Restore(f.Backup())
					n.Intercept(nil, on("list", "", func(context.Context, string, store.Name) error { return nil }))
					known := s.revocations.known()
					refuse(t, s, "uid ann")
					s.revocations.commit(known, maps.Clone(known))
				},
			}
			for step := range strings.FieldsSeq(attack) {
				steps[step]()
			}
			want := "revoked"
			if strings.Contains(attack, "take-back") {
				want = "allowed"
			}
			for range 2 {
				s.revocations.readAllAt = time.Time{}
				s.rereadAt = time.Time{}
				s.Sync(t.Context())
				wantRevoked(t, s, want, "uid ann")
			}
			wantRevoked(t, join(t, f), want, "uid ann")
		})
	}
}

// A store that has lost revocations gets them back once, from all nodes that know them,
// and as soon as it accepts writes.
func TestLostRevocationsAreWrittenBackOnce(t *testing.T) {
	t.Parallel()
	f, n, s, _ := fleetAt(t)
	other := join(t, f)
	for range 3 {
		refuse(t, s, "uid ann", "uid bob")
	}
	refuse(t, s, "uid carl")
	other.Sync(t.Context())
	f.Restore(nil)
	n.Intercept(on("update", "", down), nil)
	s.Sync(t.Context())
	n.Intercept(nil, nil)
	before := n.Count("update")
	for range 3 {
		s.Sync(t.Context())
		other.Sync(t.Context())
	}
	if got := len(f.Backup()); got != 1 || n.Count("update") != before+1 {
		t.Errorf("%d objects after %d writes of a node, want 1 and 1", got, n.Count("update")-before)
	}
	wantRevoked(t, join(t, f), "revoked", "uid ann", "uid bob", "uid carl")
}

// An object that cannot be read may revoke any token. So a node that does not know its
// content refuses all tokens until somebody mends or removes the object.
func TestDamagedRevocations(t *testing.T) {
	t.Parallel()
	for _, data := range []string{
		damaged, `{}`, `[]`, `{"revocations":[]}`, `{"revocations":[null]}`, `{"revocations":[{"id":"a","selector":"colour","expires":1800003600}]}`,
		`{"revocations":[{"selector":"uid","expires":1800003600}]}`, `{"revocations":[{"id":1}]}`,
	} {
		f, _, s, _ := fleetAt(t)
		refuse(t, s, "uid ann")
		name := mustName(store.Revocations, "x")
		f.Plant(name, data)
		late := join(t, f)
		wantRevoked(t, late, "unknown", "uid ann", "uid bob")
		if err := late.Refuse(t.Context(), []*Revocation{revocation("uid bob")}); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: Refuse = %v, want ErrUnavailable", data, err)
		}
		late.Sync(t.Context())
		if got := late.errors("decode"); got != 1 {
			t.Errorf("%s: the damage is reported %d times, want once", data, got)
		}
		f.Write(name, "")
		late.Sync(t.Context())
		wantRevoked(t, late, "revoked", "uid ann")
		wantRevoked(t, late, "allowed", "uid bob")
	}
}

// Without the store, nothing is known at first, and the last known revocations stay in
// force later. A call that could not be stored changes nothing.
func TestRevocationsWithoutTheStore(t *testing.T) {
	t.Parallel()
	f := newFleet()
	n := f.Join()
	n.Intercept(down, nil)
	s := newTestState(t, n)
	s.setTime()
	wantRevoked(t, s, "unknown", "uid ann")
	n.Intercept(nil, nil)
	s.Sync(t.Context())
	refuse(t, s, "uid ann")
	n.Intercept(down, nil)
	s.Sync(t.Context())
	wantRevoked(t, s, "revoked", "uid ann")
	list := []*Revocation{revocation("uid bob"), revocation("uid carl")}
	if err := s.Refuse(t.Context(), list); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Refuse = %v", err)
	}
	wantRevoked(t, s, "allowed", "uid bob", "uid carl")
	if _, err := s.TakeBack(t.Context(), s.Revocations().Live(s.now())[0].ID); !errors.Is(err, ErrUnavailable) {
		t.Errorf("TakeBack = %v", err)
	}
	wantRevoked(t, s, "revoked", "uid ann")
}

// fill makes n revocations.
func fill(t *testing.T, s *testState, n int) {
	t.Helper()
	for made := 0; made < n; made += maxInBatch {
		list := make([]*Revocation, min(maxInBatch, n-made))
		for i := range list {
			list[i] = revocation(fmt.Sprint("jti ", made+i))
		}
		if err := s.writeBatchOf(list); err != nil {
			t.Fatal(err)
		}
	}
}

// writeBatchOf is Refuse without merging.
func (s *testState) writeBatchOf(list []*Revocation) error {
	for _, each := range list {
		each.ID, each.Created = randomID(), s.revocations.nextDate(s.date())
	}
	return s.writeBatch(context.Background(), list)
}

// There are at most 100,000 revocations, also when calls come at the same time. One that
// is taken back makes room, and one that expires. A change costs other nodes one object.
func TestManyRevocations(t *testing.T) {
	t.Parallel()
	f, _, s, clock := fleetAt(t)
	fill(t, s, maxRevocations-1)
	id := ""
	var wait sync.WaitGroup
	var mu sync.Mutex
	made, refused := 0, 0
	for range 8 {
		wait.Go(func() {
			one := revocation("uid ann")
			err := s.Refuse(t.Context(), []*Revocation{one})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				made, id = made+1, one.ID
			case errors.Is(err, ErrRevocationLimit) && strings.Contains(err.Error(), "100000"):
				refused++
			}
		})
	}
	wait.Wait()
	if made != 1 || refused != 7 || len(s.Revocations().Live(s.now())) != maxRevocations {
		t.Fatalf("%d of 8 calls were made and %d refused; there are %d revocations", made, refused, len(s.Revocations().Live(s.now())))
	}
	n := f.Join()
	late := newTestState(t, n)
	late.setTime()
	if _, err := s.TakeBack(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	refuse(t, s, "video demo")
	before := n.Count("get", "read")
	late.Sync(t.Context())
	if got := n.Count("get", "read") - before; got != 2 {
		t.Errorf("a node reads %d objects for two changes, want 2", got)
	}
	wantRevoked(t, late, "revoked", "video demo", "jti 0", "jti 99998")
	wantRevoked(t, late, "allowed", "uid ann")
	if refuseErr := late.Refuse(t.Context(), []*Revocation{revocation("uid ann")}); !errors.Is(refuseErr, ErrRevocationLimit) {
		t.Errorf("Refuse at the limit = %v", refuseErr)
	}
	*clock = clock.Add(time.Hour)
	if err := s.Refuse(t.Context(), []*Revocation{{Selector: SelectViewer, Value: "ann", Expires: clock.Unix() + 1}}); err != nil {
		t.Errorf("Refuse after all others have expired = %v", err)
	}
	*clock = clock.Add(grace)
	s.mergeBatches(t.Context())
	if got := len(f.Backup()); got != 1 {
		t.Errorf("%d objects stay of revocations that are over, want that of ann", got)
	}
}

// Small objects are merged, so that a hundred thousand single calls do not make as many
// objects, and nothing is lost on the way, also if two nodes do it at the same time.
func TestSmallBatchesAreMerged(t *testing.T) {
	t.Parallel()
	f, n, s, _ := fleetAt(t)
	other := join(t, f)
	names := make([]string, 150)
	for i := range names {
		names[i] = fmt.Sprint("uid ", i)
		if err := s.writeBatchOf([]*Revocation{revocation(names[i])}); err != nil {
			t.Fatal(err)
		}
	}
	other.Sync(t.Context())
	var wait sync.WaitGroup
	for _, each := range []*testState{s, other} {
		wait.Go(func() { each.mergeBatches(t.Context()) })
	}
	wait.Wait()
	if got := len(f.Backup()); got != 1 {
		t.Errorf("150 small objects have become %d, want 1", got)
	}
	n.Intercept(nil, on("update", "", func(context.Context, string, store.Name) error { t.Error("a merging is taken for a loss"); return nil }))
	for _, each := range []*testState{s, other, join(t, f)} {
		each.Sync(t.Context())
		wantRevoked(t, each, "revoked", names...)
	}
}
