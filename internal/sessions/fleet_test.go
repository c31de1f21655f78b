package sessions

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/redis/rueidis"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

// patience is how long a test waits for an event of a real server.
const patience = time.Minute

// redisServer is a redis-server of a test's own, on a unix socket.
type redisServer struct {
	dir string
	cmd *exec.Cmd
}

func startRedis(t *testing.T) *redisServer {
	t.Helper()
	s := &redisServer{dir: t.TempDir()}
	s.start(t)
	t.Cleanup(s.kill)
	return s
}

func (s *redisServer) start(t *testing.T) {
	t.Helper()
	s.cmd = exec.Command("redis-server", "--port", "0", "--unixsocket", s.socket(), "--dir", s.dir, "--save", "", "--logfile", "log")
	if err := s.cmd.Start(); err != nil {
		t.Fatalf("redis-server does not start: install the Debian package redis-server: %v", err)
	}
	eventually(t, "redis-server answers", func() error {
		conn, err := net.Dial("unix", s.socket())
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

func (s *redisServer) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

func (s *redisServer) socket() string { return filepath.Join(s.dir, "s") }

func (s *redisServer) do(t *testing.T, args ...string) rueidis.RedisMessage {
	t.Helper()
	o := rueidis.MustParseURL("unix://" + s.socket())
	o.ForceSingleClient, o.DisableCache = true, true
	client, err := rueidis.NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	message, err := client.Do(t.Context(), client.B().Arbitrary(args...).Build()).ToMessage()
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return message
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	err := check()
	for end := time.Now().Add(patience); err != nil && time.Now().Before(end); err = check() {
		<-time.After(5 * time.Millisecond)
	}
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// node joins a fleet. The test itself makes the turns of Run.
func (s *redisServer) node(t *testing.T, policy Policy) *registry {
	t.Helper()
	return s.nodeAt(t, "unix://"+s.socket(), policy)
}

func (s *redisServer) nodeAt(t *testing.T, address string, policy Policy) *registry {
	t.Helper()
	storage := &certmagic.FileStorage{Path: t.TempDir()}
	redis, err := store.NewRedis(address, func() certmagic.Storage { return storage }, zap.NewNop, nil)
	if err != nil {
		t.Fatal(err)
	}
	redis.Start()
	t.Cleanup(redis.Close)
	r := &registry{clock: new(clock)}
	r.track(Config{Policy: policy, Now: func() time.Time { return time.Now().Add(time.Duration(r.nanoseconds.Load())) }, Redis: redis})
	go r.listen(t.Context())
	select {
	case <-r.fleet.wake: // the subscription has begun
	case <-time.After(patience):
		t.Fatal("the node does not listen")
	}
	r.work(t.Context(), true)
	return r
}

func fleetOf(t *testing.T, nodes int, policy Policy) (*redisServer, []*registry) {
	t.Helper()
	s := startRedis(t)
	fleet := make([]*registry, nodes)
	for i := range fleet {
		fleet[i] = s.node(t, policy)
	}
	return s, fleet
}

// begin is the first visit of a session of a viewer at home.
func begin(session int, viewer string, limit int) Visit {
	return Visit{Key: keyOf(session), Begins: true, Video: "film", Viewer: viewer, Address: home, Client: player{"CH", "hls.js"}, Limit: limit, Expires: time.Now().Add(time.Hour)}
}

// again is a later visit.
func again(session int, viewer string, limit int) Visit {
	v := begin(session, viewer, limit)
	v.Begins, v.Begun = false, time.Now().Add(-time.Minute)
	return v
}

func wantEnded(t *testing.T, fleet []*registry, v Visit) {
	t.Helper()
	for i, r := range fleet {
		eventually(t, fmt.Sprintf("node %d refuses the ended session", i), func() error {
			select {
			case <-r.fleet.wake:
				r.work(t.Context(), true)
			default:
			}
			if err := r.visit(v); !errors.Is(err, ErrEnded) {
				return errors.Join(errors.New("it is not refused as ended"), err)
			}
			return nil
		})
	}
}

// One viewer on several nodes has no more sessions than on one.
func TestLimitsOfAFleet(t *testing.T) {
	t.Parallel()
	t.Run("end_oldest", func(t *testing.T) {
		t.Parallel()
		_, fleet := fleetOf(t, 3, Policy{Timeout: time.Minute})
		wantVisit(t, fleet[0], begin(1, "anna", 2), nil)
		wantVisit(t, fleet[1], begin(2, "anna", 2), nil)
		wantVisit(t, fleet[2], again(1, "anna", 2), nil) // moved to another node
		wantVisit(t, fleet[2], begin(3, "anna", 2), nil)
		wantEnded(t, fleet, again(1, "anna", 2))
		for _, r := range fleet {
			wantVisit(t, r, again(2, "anna", 2), nil)
			wantVisit(t, r, again(3, "anna", 2), nil)
		}
		wantVisit(t, fleet[0], begin(4, "berta", 2), nil)
	})
	t.Run("refuse_new", func(t *testing.T) {
		t.Parallel()
		_, fleet := fleetOf(t, 2, Policy{Timeout: time.Minute, RefuseNew: true})
		wantVisit(t, fleet[0], begin(1, "anna", 1), nil)
		wantVisit(t, fleet[1], begin(2, "anna", 1), ErrLimit)
		wantVisit(t, fleet[1], again(1, "anna", 1), nil)
		wantVisit(t, fleet[0], begin(3, "anna", 1), ErrLimit)
	})
	t.Run("the same player after a restart", func(t *testing.T) {
		t.Parallel()
		_, fleet := fleetOf(t, 1, Policy{Timeout: time.Minute, RefuseNew: true})
		wantVisit(t, fleet[0], begin(1, "anna", 1), nil)
		fleet[0].session(keyOf(1)).seen.Add(-int64(silence))
		other := begin(2, "anna", 1)
		other.Client = player{"CH", "VLC"}
		wantVisit(t, fleet[0], other, ErrLimit)
		wantVisit(t, fleet[0], begin(3, "anna", 1), nil)
		wantEnded(t, fleet, again(1, "anna", 1))
	})
}

// However many starts race on however many nodes, no more sessions run than permitted.
func TestRacesAtTheLimitOfAFleet(t *testing.T) {
	t.Parallel()
	for _, refuseNew := range []bool{false, true} {
		t.Run(fmt.Sprintf("refuse new %t", refuseNew), func(t *testing.T) {
			t.Parallel()
			const limit, starts = 3, 60
			_, fleet := fleetOf(t, 3, Policy{Timeout: time.Minute, RefuseNew: refuseNew})
			var group sync.WaitGroup
			var allowed atomic.Int64
			for session := range starts {
				group.Go(func() {
					if fleet[rand.IntN(len(fleet))].visit(begin(session, "anna", limit)) == nil {
						allowed.Add(1)
					}
				})
			}
			group.Wait()
			if got := allowed.Load(); got < limit || refuseNew && got > limit {
				t.Errorf("%d starts were allowed", allowed.Load())
			}
			eventually(t, "the sessions beyond the limit have ended", func() error {
				running := 0
				for _, r := range fleet {
					running += r.Count()
				}
				if running != limit {
					return fmt.Errorf("%d sessions run on the nodes", running)
				}
				return nil
			})
			list, err := fleet[0].ListViewer(t.Context(), "anna")
			if err != nil || len(list) != limit || fleet[1].CountVideo(t.Context(), "film") != limit {
				t.Errorf("%d sessions are listed, %v", len(list), err)
			}
			if counts, err := fleet[1].CountVideos(t.Context()); err != nil || len(counts) != 1 || counts["film"] != limit {
				t.Errorf("sessions by video: %v, %v", counts, err)
			}
		})
	}
}

// Without the Redis, sessions play on, ended ones stay ended, and each node holds the limit. When
// it is back, without its data, the nodes tell it what they know.
func TestFleetWithoutItsRedis(t *testing.T) {
	t.Parallel()
	for _, lose := range []string{"killed", "flushed"} {
		t.Run(lose, func(t *testing.T) {
			t.Parallel()
			s, fleet := fleetOf(t, 2, Policy{Timeout: time.Minute})
			wantVisit(t, fleet[0], begin(1, "anna", 1), nil)
			wantVisit(t, fleet[0], begin(2, "anna", 1), nil) // ends 1
			wantVisit(t, fleet[1], begin(3, "berta", 1), nil)
			wantEnded(t, fleet, again(1, "anna", 1))
			if lose == "flushed" {
				s.do(t, "FLUSHALL")
			} else {
				s.kill()
				for _, r := range fleet {
					r.work(t.Context(), true)
					if !r.fleet.away.Load() || r.failures.Load() == 0 {
						t.Error("nobody notices that the redis is away")
					}
				}
				wantVisit(t, fleet[0], again(2, "anna", 1), nil)
				wantVisit(t, fleet[1], begin(4, "berta", 1), nil) // ends 3
				wantVisit(t, fleet[1], again(3, "berta", 1), ErrEnded)
				wantVisit(t, fleet[1], begin(5, "anna", 1), nil) // too many, while nobody knows
				s.start(t)
			}
			for _, r := range fleet {
				eventually(t, "the node comes back", func() error {
					r.work(t.Context(), lose == "killed") // a flush is noticed in the next second, without a hint
					if r.fleet.away.Load() {
						return errors.New("still away")
					}
					return nil
				})
			}
			newcomer := s.node(t, Policy{Timeout: time.Minute})
			wantEnded(t, append(fleet, newcomer), again(1, "anna", 1))
			if lose == "killed" {
				wantEnded(t, append(fleet, newcomer), again(3, "berta", 1))
				wantEnded(t, append(fleet, newcomer), again(2, "anna", 1))
			}
			list, err := newcomer.ListVideo(t.Context(), "film")
			if err != nil || len(list) != 2 {
				t.Errorf("the new node knows of %+v, %v: want 2 sessions", list, err)
			}
		})
	}
}

// The attack: a viewer with more ended sessions than the list has waits until the Redis loses its data, and
// resumes the first of them, or has a node tell that a session that runs since before them has ended.
func TestManyEndedSessionsAfterALoss(t *testing.T) {
	t.Parallel()
	s, fleet := fleetOf(t, 2, Policy{Timeout: time.Minute})
	wantVisit(t, fleet[1], begin(0, "anna", 0), nil)
	for session := 1; session <= maxEnded+5; session++ {
		wantVisit(t, fleet[0], begin(session, "anna", 0), nil)
		if err := fleet[0].End(t.Context(), keyOf(session).ID()); err != nil {
			t.Fatal(err)
		}
	}
	s.do(t, "FLUSHALL")
	for _, r := range fleet {
		r.work(t.Context(), false)
	}
	newcomer := s.node(t, Policy{Timeout: time.Minute})
	wantVisit(t, newcomer, again(1, "anna", 0), ErrEnded)
	wantVisit(t, newcomer, again(0, "anna", 0), nil)
	if list, err := newcomer.ListViewer(t.Context(), "anna"); len(list) != 1 || err != nil {
		t.Errorf("%d sessions run, %v", len(list), err)
	}
	s.kill() // the node has learnt of the end
	newcomer.work(t.Context(), true)
	wantVisit(t, newcomer, again(1, "anna", 0), ErrEnded)
}

// The attack: after a loss of the data, a node tells of so many sessions beyond a limit that ending them at once
// would keep Redis from all others. No call ends more than 500.
func TestLimitAfterALoss(t *testing.T) {
	t.Parallel()
	for _, refuseNew := range []bool{false, true} {
		s, fleet := fleetOf(t, 2, Policy{Timeout: time.Minute, RefuseNew: refuseNew})
		ended, most := int64(0), int64(0)
		count := func() {
			reply := s.do(t, "INFO", "commandstats")
			text, _ := reply.ToString()
			calls, _ := strconv.ParseInt(regexp.MustCompile(`cmdstat_publish:calls=(\d+)`).FindStringSubmatch(text + "cmdstat_publish:calls=0")[1], 10, 64)
			most, ended = max(most, calls-ended), calls
		}
		fleet[1].fleet.redis = watched{fleet[1].fleet.redis, count}
		limited, other := begin(0, "mallory", 1), again // a minute older
		if refuseNew {
			limited, other = again(0, "mallory", 1), begin
			wantVisit(t, fleet[1], limited, nil)
		}
		for n := range 1200 {
			wantVisit(t, fleet[0], other(1+n, "mallory", 0), nil)
		}
		if !refuseNew {
			fleet[1].fleet.away.Store(true) // so that it decides alone
			wantVisit(t, fleet[1], limited, nil)
		}
		s.do(t, "FLUSHALL")
		for _, r := range fleet {
			r.work(t.Context(), false)
		}
		list, err := fleet[1].ListViewer(t.Context(), "mallory")
		if err != nil || len(list) != 1 || list[0].ID != limited.Key.ID() {
			t.Errorf("refuse new %t: %d sessions run, %v", refuseNew, len(list), err)
		}
		if ended != 1200 || most > 500 {
			t.Errorf("refuse new %t: %d sessions have ended, %d of them in one call", refuseNew, ended, most)
		}
	}
}

// The load on the Redis: a script for each start, and in each beat one for 100 sessions. Every 10 seconds, one more
// asks for the sessions of killed nodes. With -v, the test prints the figures of docs/sessions.md.
func TestLoadOnRedis(t *testing.T) {
	t.Parallel()
	const sessions = 1000
	s, fleet := fleetOf(t, 1, Policy{Timeout: time.Minute})
	visits := func(visit func(int, string, int) Visit) func() {
		return func() {
			for n := range sessions {
				wantVisit(t, fleet[0], visit(n, fmt.Sprint("viewer", n), 2), nil)
			}
		}
	}
	beat := func() { fleet[0].work(t.Context(), true) }
	second := func() { fleet[0].work(t.Context(), false) }
	for _, step := range []struct {
		what string
		does func()
		most float64 // scripts
	}{
		{"1,000 starts", visits(begin), sessions},
		{"the scores of sharing of 1,000 starts", second, 1 + sessions/beatBatch + 1},
		{"1,000 requests", visits(again), 0},
		{"the beat of 1,000 sessions", beat, sessions/beatBatch + 1},
		{"a second without requests", second, 1 + 1},
	} {
		before := s.spent(t)
		step.does()
		after := s.spent(t)
		scripts := after["calls"] - before["calls"]
		t.Logf("%s: %.0f scripts, %.1f ms of a processor, %.0f KB to the Redis, %.0f KB of its memory", step.what, scripts,
			1000*(after["cpu"]-before["cpu"]), (after["net"]-before["net"])/1000, (after["memory"]-before["memory"])/1000)
		if scripts > step.most && fleet[0].failures.Load() == 0 {
			t.Errorf("%s: %.0f scripts, want at most %.0f", step.what, scripts, step.most)
		}
	}
}

// spent returns what the server has spent since its start: calls of scripts, seconds of a processor, and bytes.
func (s *redisServer) spent(t *testing.T) map[string]float64 {
	t.Helper()
	reply := s.do(t, "INFO", "everything")
	text, err := reply.ToString()
	if err != nil {
		t.Fatal(err)
	}
	spent := make(map[string]float64)
	for name, field := range map[string]string{
		"calls": `cmdstat_eval(?:sha)?:calls=(\d+)`, "cpu": `used_cpu_(?:sys|user):([\d.]+)`, "net": `total_net_input_bytes:(\d+)`, "memory": `used_memory:(\d+)`,
	} {
		for _, m := range regexp.MustCompile(field).FindAllStringSubmatch(text, -1) {
			n, err := strconv.ParseFloat(m[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			spent[name] += n
		}
	}
	return spent
}

// watched is a Redis that a test looks at after each call.
type watched struct {
	Redis
	after func()
}

func (w watched) Run(ctx context.Context, script *rueidis.Lua, key string, args []string) (rueidis.RedisMessage, error) {
	defer w.after()
	return w.Redis.Run(ctx, script, key, args)
}

// A session that moves between nodes ends once, with the bytes of all.
func TestEndOfASessionInAFleet(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"timeout", "deleted", "limit"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			_, fleet := fleetOf(t, 2, Policy{Timeout: time.Minute})
			for i, v := range []Visit{begin(1, "anna", 1), again(1, "anna", 1)} {
				session, err := fleet[i].Visit(t.Context(), v)
				if err != nil {
					t.Fatal(err)
				}
				session.AddBytes(int64(1000 * (i + 1)))
				fleet[i].work(t.Context(), true)
			}
			switch how {
			case "timeout":
				for _, r := range fleet {
					r.Use(Policy{Timeout: time.Nanosecond})
				}
			case "deleted":
				if info, found, err := fleet[0].Find(t.Context(), keyOf(1).ID()); !found || err != nil || info.Viewer != "anna" {
					t.Errorf("Find: %+v, %t, %v", info, found, err)
				}
				if err := fleet[0].End(t.Context(), keyOf(1).ID()); err != nil {
					t.Errorf("End: %v", err)
				}
			case "limit":
				wantVisit(t, fleet[1], begin(2, "anna", 1), nil)
			}
			var ends []Event
			eventually(t, "the end is told", func() error {
				ends = nil
				for _, r := range fleet {
					r.work(t.Context(), false)
					ends = append(ends, slices.DeleteFunc(slices.Clone(r.ends), func(e Event) bool { return e.ID != keyOf(1).ID() })...)
					if r.session(keyOf(1)) != nil {
						return errors.New("the session still runs")
					}
				}
				if len(ends) == 0 {
					return errors.New("nobody tells")
				}
				return nil
			})
			if len(ends) != 1 || ends[0].Bytes != 3000 || string(ends[0].Reason) != how {
				t.Errorf("%+v, want one end with 3000 bytes", ends)
			}
		})
	}
}

// The end of a session whose node was killed is told once, by a node that runs, with its reason.
func TestEndOfASessionOfAKilledNode(t *testing.T) {
	t.Parallel()
	s, fleet := fleetOf(t, 1, Policy{Timeout: time.Minute})
	for session := range 2 {
		known, err := fleet[0].Visit(t.Context(), begin(session, "anna", 0))
		if err != nil {
			t.Fatal(err)
		}
		known.AddBytes(1000)
	}
	fleet[0].work(t.Context(), true) // the last turn of the node
	running := []*registry{s.node(t, Policy{Timeout: time.Minute}), s.node(t, Policy{Timeout: time.Minute})}
	if err := running[0].End(t.Context(), keyOf(0).ID()); err != nil {
		t.Fatal(err)
	}
	wantVisit(t, running[0], begin(2, "berta", 0), nil) // it has a node that runs
	for session := range 2 {
		s.do(t, "ZINCRBY", fleetKey+"untold", fmt.Sprint(-(time.Minute + orphaned).Milliseconds()), keyOf(session).ID().String()) // the time passes
	}
	var wait sync.WaitGroup
	for _, r := range running {
		r.fleet.beat = time.Time{}
		wait.Go(func() { r.work(t.Context(), false) })
	}
	wait.Wait()
	ends := append(running[0].ends, running[1].ends...)
	reasons := make(map[ID]Reason)
	for _, e := range ends {
		reasons[e.ID] = e.Reason
		if e.Bytes != 1000 || e.Viewer != "anna" || e.Video != "film" || time.Since(e.Started) > patience || time.Since(e.LastSeen) > patience {
			t.Errorf("the end %+v", e)
		}
	}
	if len(ends) != 2 || reasons[keyOf(0).ID()] != Deleted || reasons[keyOf(1).ID()] != TimedOut {
		t.Errorf("%d ends are told: %v", len(ends), reasons)
	}
}

// The attack: a node with more sessions than one script takes is killed, so that most of their ends are
// lost. One turn of another node tells all of them.
func TestManyEndsOfAKilledNode(t *testing.T) {
	t.Parallel()
	s, fleet := fleetOf(t, 2, Policy{Timeout: time.Minute})
	const many = 250
	for session := range many {
		wantVisit(t, fleet[0], begin(session, fmt.Sprint(session), 0), nil)
		s.do(t, "ZADD", fleetKey+"untold", "1", keyOf(session).ID().String()) // the time passes
	}
	fleet[1].fleet.beat = time.Time{}
	fleet[1].work(t.Context(), false)
	if got := len(fleet[1].ends); got != many {
		t.Errorf("%d of %d ends are told", got, many)
	}
}

// The attack: a viewer moves through many networks, and a limit ends sessions of which Redis has forgotten the
// rest, so that its memory grows for ever. Each key expires, and the places of a viewer are bounded.
func TestKeysOfAFleetExpire(t *testing.T) {
	t.Parallel()
	s, fleet := fleetOf(t, 1, Policy{Timeout: time.Minute})
	for session := range 100 {
		v := begin(session, "anna", 0)
		v.Address = netip.AddrFrom4([4]byte{10, 0, byte(session), 1})
		wantVisit(t, fleet[0], v, nil)
	}
	fleet[0].work(t.Context(), true)
	s.do(t, "DEL", fleetKey+"session:"+keyOf(0).ID().String())
	wantVisit(t, fleet[0], begin(100, "anna", 1), nil)
	fleet[0].work(t.Context(), true)
	number := func(args ...string) int64 {
		reply := s.do(t, args...)
		n, err := reply.AsInt64()
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		return n
	}
	reply := s.do(t, "KEYS", fleetKey+"*")
	keys, err := reply.AsStrSlice()
	if err != nil || len(keys) < 100 {
		t.Fatalf("%d keys: %v", len(keys), err)
	}
	for _, key := range keys {
		if left := number("PTTL", key); left <= 0 {
			t.Errorf("%q expires in %d ms", key, left)
		}
		if strings.HasPrefix(key, fleetKey+"places:") && number("ZCARD", key) != 64 {
			t.Errorf("%d places of a viewer are kept", number("ZCARD", key))
		}
	}
}

// The attack: one link on several nodes, on none of which it is used often enough to be noticed. The viewer
// is reported once, by one node; a family on two nodes is not.
func TestSharingIsScoredOverTheFleet(t *testing.T) {
	t.Parallel()
	_, fleet := fleetOf(t, 3, Policy{Timeout: time.Minute})
	for i, r := range fleet {
		for n := range 2 {
			v := begin(10*i+n, "anna", 0)
			v.Address = netip.AddrFrom4([4]byte{10, 0, byte(2*i + n), 1})
			wantVisit(t, r, v, nil)
			v = begin(100+10*i+n, "berta", 0)
			wantVisit(t, r, v, nil)
		}
		r.work(t.Context(), false)
	}
	var reports []Sharing
	for _, r := range fleet {
		r.work(t.Context(), false)
		reports = append(reports, r.shared...)
	}
	if len(reports) != 1 || reports[0].Viewer != "anna" || reports[0].Score < SharingThreshold || reports[0].Networks < 3 || reports[0].Countries != 1 {
		t.Errorf("%+v are reported, want one viewer", reports)
	}
}

// The attack: a viewer begins so many sessions that the node has no room for what others do. A viewer who
// shares a token is reported all the same.
func TestFloodOfStartsHidesNoSharing(t *testing.T) {
	t.Parallel()
	_, fleet := fleetOf(t, 1, Policy{Timeout: time.Minute})
	r := fleet[0]
	for n := range maxReports + 100 {
		wantVisit(t, r, begin(n, "mallory", 0), nil)
	}
	for n := range SharingThreshold + 1 {
		v := begin(10_000+n, "anna", 1)
		v.Address = netip.AddrFrom4([4]byte{10, 0, byte(n), 1})
		wantVisit(t, r, v, nil)
	}
	r.work(t.Context(), false)
	if !slices.ContainsFunc(r.shared, func(s Sharing) bool { return s.Viewer == "anna" }) {
		t.Errorf("%+v are reported", r.shared)
	}
}

// The attack: a viewer without a limit has so many sessions that ending them at the first start with one
// would keep Redis from all others. Each start ends a part, and the one after the last begins.
func TestLimitAfterAFlood(t *testing.T) {
	t.Parallel()
	s, fleet := fleetOf(t, 1, Policy{Timeout: time.Minute})
	for n := range 1200 {
		wantVisit(t, fleet[0], begin(n, "mallory", 0), nil)
	}
	for _, want := range []error{ErrLimit, ErrLimit, nil} {
		wantVisit(t, fleet[0], begin(10_000, "mallory", 1), want)
	}
	reply := s.do(t, "ZCARD", fleetKey+"seen:"+keyOfViewer("mallory").String())
	if n, err := reply.AsInt64(); err != nil || n != 1 {
		t.Errorf("%d sessions run: %v", n, err)
	}
}

// The rights that the documentation asks for are enough.
func TestRedisUserWithFewRights(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/store.md")
	if err != nil {
		t.Fatal(err)
	}
	rights := regexp.MustCompile(`(?s)A Redis user with few rights.*?\n\n`).FindString(string(page))
	user := []string{"ACL", "SETUSER", "playback", "on", ">secret", "~{signed_playback}:*", "~{signed_playback.sessions}:*", "&{signed_playback.sessions}:ended"}
	for _, command := range regexp.MustCompile(`\b[A-Z]{3,}\b`).FindAllString(rights, -1) {
		user = append(user, "+"+strings.ToLower(command))
	}
	s := startRedis(t)
	s.do(t, user...)
	r := s.nodeAt(t, "unix://playback:secret@"+s.socket(), Policy{Timeout: time.Minute, RefuseNew: true})
	wantVisit(t, r, begin(1, "anna", 1), nil)
	wantVisit(t, r, begin(2, "anna", 1), ErrLimit)
	r.Use(Policy{Timeout: time.Minute})
	for session := range maxEnded + 3 {
		wantVisit(t, r, begin(10+session, "anna", 1), nil)
	}
	wantEnded(t, []*registry{r}, again(1, "anna", 1))
	if list, err := r.ListVideo(t.Context(), "film"); len(list) != 1 || err != nil || r.CountVideo(t.Context(), "film") != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	if err := r.End(t.Context(), keyOf(9+maxEnded+3).ID()); err != nil {
		t.Error(err)
	}
	r.work(t.Context(), true)
	if err := r.restore(t.Context()); err != nil || r.failures.Load() != 0 {
		t.Errorf("%d calls have failed, %v", r.failures.Load(), err)
	}
}

// The attack: a client begins sessions and cancels each request, so that the node decides alone
// or tells the Redis of all its sessions again.
func TestCancelledStartsOfAFleet(t *testing.T) {
	t.Parallel()
	_, fleet := fleetOf(t, 2, Policy{Timeout: time.Minute, RefuseNew: true})
	wantVisit(t, fleet[0], begin(1, "anna", 1), nil)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := fleet[1].Visit(cancelled, begin(2, "anna", 1)); !errors.Is(err, ErrLimit) {
		t.Errorf("a cancelled start beyond the limit: %v, want %v", err, ErrLimit)
	}
	if len(fleet[1].fleet.wake) != 0 || fleet[1].failures.Load() != 0 {
		t.Errorf("the cancelled start has the node tell everything again; %d failures are counted", fleet[1].failures.Load())
	}
}

// What other clients of the Redis publish ends nothing and makes no node fail.
func TestHearIgnoresStrangers(t *testing.T) {
	t.Parallel()
	r := newRegistry(Policy{Timeout: time.Minute})
	wantVisit(t, r, r.request(1, "anna", 1), nil)
	id, viewer := keyOf(1).ID().String(), keyOfViewer("anna").String()
	for _, message := range []string{"", "a b c d e", viewer + " " + id, viewer[1:] + " " + id + " 1 1 limit", viewer + " " + id + " x 1 limit", viewer + " " + id + " 1 y limit", viewer + " " + id[2:] + " 1 1 limit"} {
		r.hear(message)
	}
	if r.Count() != 1 {
		t.Error("the session has ended")
	}
	r.hear(viewer + " " + id + " 1 1 of_another_version")
	if r.Count() != 0 {
		t.Error("the session has not ended")
	}
	r.capacity = 2
	for n := range 10 {
		r.hear(keyOfViewer(fmt.Sprint(n)).String() + " " + id + " 1 1 limit")
	}
	if len(r.viewers) != 2*r.capacity {
		t.Errorf("%d viewers are remembered", len(r.viewers))
	}
}
