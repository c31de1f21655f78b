package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/google/go-cmp/cmp"
	"github.com/redis/rueidis"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// redisPatience is how long a test waits for what has to happen some time.
const redisPatience = 20 * time.Second

// redisServer is a redis-server of a test's own, on a unix socket.
type redisServer struct {
	dir    string
	args   []string
	cmd    *exec.Cmd
	exited chan error
}

func startRedis(t *testing.T, args ...string) *redisServer {
	t.Helper()
	s := &redisServer{dir: t.TempDir(), args: args}
	t.Cleanup(s.kill)
	s.start(t)
	return s
}

// start runs the server until it answers, be it with an error.
func (s *redisServer) start(t *testing.T) {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatalf("redis-server is missing: install the Debian package redis-server: %v", err)
	}
	args := append([]string{"--port", "0", "--unixsocket", s.socket(), "--dir", s.dir, "--save", "", "--logfile", "log"}, s.args...)
	cmd, exited := exec.Command(path, args...), make(chan error, 1)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { exited <- cmd.Wait() }()
	s.cmd, s.exited = cmd, exited
	redisEventually(t, "redis-server answers", func() error {
		conn, err := net.Dial("unix", s.socket())
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// kill ends the server even if it has been stopped.
func (s *redisServer) kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		<-s.exited
		s.cmd = nil
	}
}

func (s *redisServer) signal(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

func (s *redisServer) socket() string { return filepath.Join(s.dir, "s") }

func (s *redisServer) address() string { return "unix://" + s.socket() }

// try runs one command over a connection of its own.
func (s *redisServer) try(args ...string) rueidis.RedisResult {
	o := rueidis.MustParseURL(s.address())
	o.ForceSingleClient, o.DisableCache, o.DisableRetry, o.PipelineMultiplex = true, true, true, -1
	client, err := rueidis.NewClient(o)
	if err != nil {
		return rueidis.NewErrorResult(err)
	}
	defer client.Close()
	return client.Do(context.Background(), client.B().Arbitrary(args...).Build())
}

func (s *redisServer) do(t *testing.T, args ...string) rueidis.RedisMessage {
	t.Helper()
	message, err := s.try(args...).ToMessage()
	if err != nil && !rueidis.IsRedisNil(err) {
		t.Fatalf("%.80q: %v", args, err)
	}
	return message
}

// save returns what is in the server, in a form for restore.
func (s *redisServer) save(t *testing.T) map[string]string {
	t.Helper()
	saved := make(map[string]string)
	for _, key := range allKeys {
		if reply := s.do(t, "DUMP", key); !reply.IsNil() {
			saved[key], _ = reply.ToString()
		}
	}
	return saved
}

func (s *redisServer) restore(t *testing.T, saved map[string]string) {
	t.Helper()
	s.do(t, "FLUSHALL")
	for key, dump := range saved {
		s.do(t, "RESTORE", key, "0", dump)
	}
}

func (s *redisServer) open(t *testing.T) *Redis {
	t.Helper()
	return openRedis(t, s.address(), &certmagic.FileStorage{Path: t.TempDir()}, zap.NewNop())
}

func openRedis(t *testing.T, address string, local certmagic.Storage, logger *zap.Logger) *Redis {
	t.Helper()
	r, err := NewRedis(address, local, logger)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func redisEventually(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline, retry := time.After(redisPatience), time.NewTicker(10*time.Millisecond)
	defer retry.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-retry.C:
		case <-deadline:
			t.Fatalf("not in time: %s: %v", what, err)
		}
	}
}

func redisName(t *testing.T, collection Collection, id string) Name {
	t.Helper()
	name, err := NewName(collection, id)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func redisPut(t *testing.T, s Store, name Name, data string) {
	t.Helper()
	if err := redisTryPut(t.Context(), s, name, data); err != nil {
		t.Fatalf("Update(%s): %v", name, err)
	}
}

func redisTryPut(ctx context.Context, s Store, name Name, data string) error {
	return s.Update(ctx, name, func(Object) ([]byte, error) { return []byte(data), nil })
}

// redisWant fails unless an object has that data, "" for none.
func redisWant(t *testing.T, s Store, name Name, data string) {
	t.Helper()
	if err := redisHas(t.Context(), s, name, data); err != nil {
		t.Fatal(err)
	}
}

func redisHas(ctx context.Context, s Store, name Name, data string) error {
	object, err := s.Get(ctx, name)
	switch {
	case err != nil:
		return fmt.Errorf("Get(%s): %w", name, err)
	case object.Name != name || object.Damage != nil || string(object.Data) != data || (object.Data == nil) != (data == ""):
		return fmt.Errorf("Get(%s) = %s %q, damage %w: want %q", name, object.Name, object.Data, object.Damage, data)
	}
	return nil
}

func redisWantUnavailable(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	if !errors.Is(err, ErrUnavailable) {
		t.Fatalf("%s: error %v: want ErrUnavailable", what, err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%s: error %q: want it to say %q", what, err, word)
		}
	}
}

// redisWantLost fails unless every call says that the store is unavailable.
func redisWantLost(t *testing.T, s Store, names ...Name) {
	t.Helper()
	for _, name := range names {
		_, err := s.Get(t.Context(), name)
		redisWantUnavailable(t, "Get "+name.String(), err, "lost")
		redisWantUnavailable(t, "Update "+name.String(), redisTryPut(t.Context(), s, name, `"new"`), "lost")
		_, err = redisAll(t.Context(), s, name.Collection())
		redisWantUnavailable(t, "All", err, "lost")
	}
	_, _, err := s.Changes(t.Context())
	redisWantUnavailable(t, "Changes", err, "lost")
}

func redisAll(ctx context.Context, s Store, collection Collection) (map[string]string, error) {
	all := make(map[string]string)
	for object, err := range s.All(ctx, collection) {
		if err != nil {
			return nil, err
		}
		if _, twice := all[object.Name.ID()]; twice {
			return nil, fmt.Errorf("%s is there twice", object.Name)
		}
		all[object.Name.ID()] = string(object.Data)
	}
	return all, nil
}

type redisChanges struct {
	Changed  []string
	Complete bool
}

func redisWantChanges(t *testing.T, s Store, want redisChanges) {
	t.Helper()
	names, complete, err := s.Changes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := redisChanges{Complete: complete}
	for _, name := range names {
		got.Changed = append(got.Changed, name.String())
	}
	slices.Sort(got.Changed)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("Changes (-want +got):\n%s", diff)
	}
}

func redisAwaitWake(t *testing.T, s Store) {
	t.Helper()
	select {
	case <-s.Wake():
	case <-time.After(redisPatience):
		t.Fatal("no wake-up in time")
	}
}

func redisDrain(s Store) {
	select {
	case <-s.Wake():
	default:
	}
}

func TestRedisRoundTrip(t *testing.T) {
	server := startRedis(t)
	a, b := server.open(t), server.open(t)
	for _, collection := range []Collection{Keys, Videos, Signing} {
		one, none := redisName(t, collection, "one"), redisName(t, collection, "none")
		redisPut(t, a, one, `{"a": "<&>"}`)
		redisWant(t, b, one, `{"a":"<&>"}`)
		redisPut(t, b, one, `[2]`)
		redisWant(t, a, one, `[2]`)
		redisWant(t, a, none, "")
		got, err := redisAll(t.Context(), a, collection)
		if diff := cmp.Diff(map[string]string{"one": "[2]"}, got); err != nil || diff != "" {
			t.Errorf("All(%s): %v (-want +got):\n%s", collection, err, diff)
		}
	}
}

func TestRedisUpdateDeletesAndLeavesAlone(t *testing.T) {
	server := startRedis(t)
	r, name := server.open(t), redisName(t, Videos, "v")
	redisWantChanges(t, r, redisChanges{})
	update := func(want string, data []byte, fail error) {
		t.Helper()
		err := r.Update(t.Context(), name, func(present Object) ([]byte, error) {
			if string(present.Data) != want || present.Name != name {
				t.Errorf("change gets %s %q: want %q", present.Name, present.Data, want)
			}
			return data, fail
		})
		if err != fail { //nolint:errorlint // it must be the very same
			t.Fatalf("Update: error %v: want %v", err, fail)
		}
	}
	changed := redisChanges{[]string{"videos/v"}, true}
	nothing := redisChanges{nil, true}

	update("", nil, nil)
	redisWantChanges(t, r, nothing)
	update("", []byte(`1`), nil)
	redisWantChanges(t, r, changed)
	update("1", []byte(`1`), nil)
	update("1", []byte(`2`), errors.New("no"))
	redisWantChanges(t, r, nothing)
	redisWant(t, r, name, "1")
	update("1", nil, nil)
	redisWantChanges(t, r, changed)
	redisWant(t, r, name, "")
}

func TestRedisConcurrentUpdatesLoseNothing(t *testing.T) {
	server := startRedis(t)
	stores, name := []*Redis{server.open(t), server.open(t)}, redisName(t, Videos, "counter")
	const writers, times = 8, 25
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for range times {
				if err := stores[i%len(stores)].Update(t.Context(), name, redisIncrement); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	redisWant(t, stores[0], name, fmt.Sprint(writers*times))
}

func redisIncrement(present Object) ([]byte, error) {
	count := 0
	if present.Data != nil {
		if err := json.Unmarshal(present.Data, &count); err != nil {
			return nil, err
		}
	}
	return json.Marshal(count + 1)
}

func TestRedisUpdateGivesUpWhenAlwaysOvertaken(t *testing.T) {
	server := startRedis(t)
	r, other, name := server.open(t), server.open(t), redisName(t, Videos, "v")
	attempts := 0
	err := r.Update(t.Context(), name, func(Object) ([]byte, error) {
		attempts++
		return []byte(`"mine"`), other.Update(t.Context(), name, redisIncrement)
	})
	if !errors.Is(err, ErrBusy) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("error %v: want ErrBusy and ErrUnavailable", err)
	}
	redisWant(t, r, name, fmt.Sprint(attempts))
}

func TestRedisChangesOfOthersAreTold(t *testing.T) {
	server := startRedis(t)
	a, b := server.open(t), server.open(t)
	redisPut(t, a, redisName(t, Keys, "early"), `1`)
	redisWantChanges(t, b, redisChanges{})
	redisWantChanges(t, b, redisChanges{nil, true})
	for range 3 {
		if err := a.Update(t.Context(), redisName(t, Videos, "v"), redisIncrement); err != nil {
			t.Fatal(err)
		}
	}
	redisPut(t, b, redisName(t, Keys, "k"), `1`)
	redisWantChanges(t, b, redisChanges{[]string{"keys/k", "videos/v"}, true})
	redisWantChanges(t, b, redisChanges{nil, true})
}

func TestRedisChangesOverLongGap(t *testing.T) {
	server := startRedis(t)
	a, b, name := server.open(t), server.open(t), redisName(t, Videos, "v")
	redisPut(t, a, name, `0`)
	for _, gap := range []struct {
		updates int
		want    redisChanges
	}{
		{maxChanges, redisChanges{[]string{"videos/v"}, true}},
		{maxChanges + 1, redisChanges{}},
	} {
		if _, _, err := b.Changes(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range gap.updates {
			if err := a.Update(t.Context(), name, redisIncrement); err != nil {
				t.Fatal(err)
			}
		}
		redisWantChanges(t, b, gap.want)
		redisWantChanges(t, b, redisChanges{nil, true})
	}
}

func TestRedisChangesAfterOldBackup(t *testing.T) {
	server := startRedis(t)
	r, name := server.open(t), redisName(t, Videos, "v")
	redisPut(t, r, name, `1`)
	backup := server.save(t)
	redisPut(t, r, name, `2`)
	redisWantChanges(t, r, redisChanges{})
	server.restore(t, backup)
	redisWantChanges(t, r, redisChanges{})
	redisWant(t, r, name, `1`)
	redisWantChanges(t, r, redisChanges{nil, true})
}

// A node that was cut off while a backup was restored must not take the changes
// since then for a continuation of those it knows.
func TestRedisChangesAfterOldBackupThatCaughtUp(t *testing.T) {
	server := startRedis(t)
	writer, away, name := server.open(t), server.open(t), redisName(t, Videos, "v")
	redisPut(t, writer, name, `0`)
	backup := server.save(t)
	for _, updates := range []int{1, 2} {
		redisPut(t, writer, name, `"lost"`)
		if _, _, err := away.Changes(t.Context()); err != nil {
			t.Fatal(err)
		}
		server.restore(t, backup)
		for range updates {
			if err := writer.Update(t.Context(), name, redisIncrement); err != nil {
				t.Fatal(err)
			}
		}
		redisWantChanges(t, away, redisChanges{})
		server.restore(t, backup)
	}
}

func TestRedisChangesThatCannotBeRead(t *testing.T) {
	server := startRedis(t)
	r, name := server.open(t), redisName(t, Videos, "v")
	for i, fault := range [][]string{
		{"LSET", changesKey, "0", "nonsense"},
		{"LSET", changesKey, "0", "1 videos/v 0"},
		{"LPOP", changesKey},
		{"DEL", changesKey},
		{"HINCRBY", stateKey, "version", "7"},
	} {
		if _, _, err := r.Changes(t.Context()); err != nil {
			t.Fatal(err)
		}
		redisPut(t, r, redisName(t, Videos, "other"), fmt.Sprint(i))
		if err := r.Update(t.Context(), name, redisIncrement); err != nil {
			t.Fatal(err)
		}
		server.do(t, fault...)
		redisWantChanges(t, r, redisChanges{})
	}
	server.do(t, "HSET", stateKey, "version", "x")
	_, _, err := r.Changes(t.Context())
	redisWantUnavailable(t, "Changes", err, "version")
}

// What cannot be announced must not be changed: the others would go on with
// what they have.
func TestRedisChangeThatCannotBeAnnounced(t *testing.T) {
	server := startRedis(t)
	r, name := server.open(t), redisName(t, Videos, "v")
	redisPut(t, r, name, `1`)
	server.do(t, "SET", changesKey, "not a list")
	redisWantUnavailable(t, "Update", redisTryPut(t.Context(), r, name, `2`), "WRONGTYPE")
	redisWant(t, r, name, `1`)
}

func TestRedisWakes(t *testing.T) {
	server := startRedis(t)
	a, b, name := server.open(t), server.open(t), redisName(t, Videos, "v")
	redisWantChanges(t, b, redisChanges{})
	redisDrain(b)
	const times = 50
	var total, slowest time.Duration
	for range times {
		called := time.Now()
		if err := a.Update(t.Context(), name, redisIncrement); err != nil {
			t.Fatal(err)
		}
		redisAwaitWake(t, b)
		total, slowest = total+time.Since(called), max(slowest, time.Since(called))
		redisWantChanges(t, b, redisChanges{[]string{"videos/v"}, true})
	}
	t.Logf("from the call of Update to Wake elsewhere: %v on average, %v at most", total/times, slowest)
	server.do(t, "FLUSHALL")
	redisAwaitWake(t, b)
}

func TestRedisServerWithoutInvalidations(t *testing.T) {
	server := startRedis(t)
	for _, parameter := range []string{"client_cache=0", "protocol=2"} {
		r := openRedis(t, server.address()+"?"+parameter, &certmagic.FileStorage{Path: t.TempDir()}, zap.NewNop())
		if r.Wake() != nil {
			t.Errorf("%s: Wake is not nil", parameter)
		}
		name := redisName(t, Videos, parameter[:6])
		redisWantChanges(t, r, redisChanges{})
		redisPut(t, r, name, `1`)
		redisWant(t, r, name, `1`)
		redisWantChanges(t, r, redisChanges{[]string{name.String()}, true})
	}
}

// Redis answers after FLUSHALL as if nothing had ever been there: as if no key
// had been revoked.
func TestRedisFlushAll(t *testing.T) {
	server := startRedis(t)
	local := &certmagic.FileStorage{Path: t.TempDir()}
	r := openRedis(t, server.address(), local, zap.NewNop())
	known, unknown := redisName(t, Videos, "known"), redisName(t, Keys, "unknown")
	redisPut(t, r, known, `1`)
	redisWantChanges(t, r, redisChanges{})
	backup := server.save(t)

	server.do(t, "FLUSHALL")
	redisWantLost(t, r, known, unknown)
	restarted := openRedis(t, server.address(), local, zap.NewNop())
	redisWantLost(t, restarted, known, unknown)

	// Somebody who has never been here starts anew. That is not ours either.
	stranger := server.open(t)
	redisPut(t, stranger, unknown, `2`)
	redisWantLost(t, r, known, unknown)
	redisWantLost(t, restarted, known, unknown)

	server.restore(t, backup)
	server.do(t, "HSET", stateKey, "version", "x") // another fault must not make the first forgotten
	_, _, err := r.Changes(t.Context())
	redisWantUnavailable(t, "Changes", err, "version")
	server.restore(t, backup)
	for _, s := range []Store{r, restarted} {
		redisWant(t, s, known, `1`)
		redisWantChanges(t, s, redisChanges{})
		redisWantChanges(t, s, redisChanges{nil, true})
	}
	redisWantLost(t, stranger, known, unknown)
}

func TestRedisEvictedHash(t *testing.T) {
	server := startRedis(t)
	r, video, key := server.open(t), redisName(t, Videos, "v"), redisName(t, Keys, "k")
	redisPut(t, r, video, `1`)
	redisPut(t, r, key, `1`)
	redisWantChanges(t, r, redisChanges{})
	backup := server.save(t)
	server.do(t, "DEL", hashOf(Videos))
	redisWantLost(t, r, video)
	redisWant(t, r, key, `1`)

	// A node that has just come must not make a whole of the rest.
	newcomer := server.open(t)
	_, err := newcomer.Get(t.Context(), key)
	redisWantUnavailable(t, "Get", err, "in part", hashOf(Videos), "HSET '{signed_playback}:videos' '#epoch'")
	redisWantLost(t, r, video)

	server.do(t, "HSET", hashOf(Videos), epochField, r.session.Load().epoch)
	redisWant(t, newcomer, video, "")
	redisWant(t, r, video, "")
	redisWantChanges(t, r, redisChanges{})
	server.restore(t, backup)
	redisWant(t, r, video, `1`)

	server.do(t, "DEL", stateKey)
	redisWantUnavailable(t, "Update", redisTryPut(t.Context(), r, video, `2`), "lost", stateKey)
	_, err = server.open(t).Get(t.Context(), key)
	redisWantUnavailable(t, "Get", err, "in part", "HSET '{signed_playback}:state' 'epoch'")
}

// Nothing may be written into what is not ours.
func TestRedisFlushAllDuringUpdate(t *testing.T) {
	server := startRedis(t)
	r := server.open(t)
	err := r.Update(t.Context(), redisName(t, Videos, "v"), func(Object) ([]byte, error) {
		server.do(t, "FLUSHALL")
		return []byte(`1`), nil
	})
	redisWantUnavailable(t, "Update", err, "lost")
	if n, err := server.try("DBSIZE").AsInt64(); n != 0 || err != nil {
		t.Errorf("%d keys, %v: want nothing written", n, err)
	}
}

func TestRedisFlushAllDuringScan(t *testing.T) {
	server := startRedis(t)
	r := server.open(t)
	redisFill(t, server, r, 5000)
	read := 0
	var last error
	for _, err := range r.All(t.Context(), Videos) {
		if read++; read == 1 {
			server.do(t, "FLUSHALL")
		}
		last = err
	}
	redisWantUnavailable(t, fmt.Sprintf("All after %d objects", read), last, "lost")
}

// redisFill writes many videos at once, past the store.
func redisFill(t *testing.T, server *redisServer, r *Redis, n int) map[string]string {
	t.Helper()
	redisWant(t, r, redisName(t, Videos, "none"), "")
	want := make(map[string]string)
	args := []string{"HSET", hashOf(Videos)}
	for i := range n {
		name := redisName(t, Videos, fmt.Sprintf("video-%d", i))
		raw, err := seal(name, fmt.Appendf(nil, `{"n":%d}`, i))
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, name.ID(), string(raw))
		want[name.ID()] = fmt.Sprintf(`{"n":%d}`, i)
	}
	server.do(t, args...)
	return want
}

func TestRedisAllOfManyAndForeignFields(t *testing.T) {
	server := startRedis(t)
	core, logs := observer.New(zap.WarnLevel)
	r := openRedis(t, server.address(), &certmagic.FileStorage{Path: t.TempDir()}, zap.New(core))
	want := redisFill(t, server, r, 5000)
	server.do(t, "HSET", hashOf(Videos), "../x", "1", "", "2")
	got, err := redisAll(t.Context(), r, Videos)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("All: %v (-want +got):\n%.2000s", err, diff)
	}
	if logged := logs.FilterMessageSnippet("not ids").All(); len(logged) != 1 || logged[0].ContextMap()["count"] != int64(2) {
		t.Errorf("log %v: want one warning of 2 foreign fields", logged)
	}
}

func TestRedisHangs(t *testing.T) {
	server := startRedis(t)
	r, name := server.open(t), redisName(t, Videos, "v")
	redisPut(t, r, name, `1`)
	server.signal(t, syscall.SIGSTOP)
	calls := map[string]func(context.Context) error{
		"Get":     func(ctx context.Context) error { _, err := r.Get(ctx, name); return err },
		"Update":  func(ctx context.Context) error { return redisTryPut(ctx, r, name, `1`) },
		"All":     func(ctx context.Context) error { _, err := redisAll(ctx, r, Videos); return err },
		"Changes": func(ctx context.Context) error { _, _, err := r.Changes(ctx); return err },
	}
	for what, call := range calls {
		// That the error is the context's shows that it is what ended the call.
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		err := call(ctx)
		cancel()
		redisWantUnavailable(t, what, err)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: error %v: want the context's", what, err)
		}
	}
	server.signal(t, syscall.SIGCONT)
	redisEventually(t, "Redis goes on", func() error { return redisHas(t.Context(), r, name, `1`) })
}

// The queue of a connection has an end, and rueidis waits there without looking
// at the context.
func TestRedisHangsUnderLoad(t *testing.T) {
	server := startRedis(t)
	r, name := server.open(t), redisName(t, Videos, "v")
	redisPut(t, r, name, `1`)
	server.signal(t, syscall.SIGSTOP)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for range 3000 {
		wg.Go(func() {
			if _, err := r.Get(ctx, name); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v: want ErrUnavailable with the context's", err)
			}
		})
	}
	wg.Wait()
	server.signal(t, syscall.SIGCONT)
	redisEventually(t, "Redis goes on", func() error { return redisHas(t.Context(), r, name, `1`) })
}

// A connection that nothing comes from is given up without anybody's doing: the
// end of it is worth a look at the changes.
func TestRedisHangIsNoticed(t *testing.T) {
	server := startRedis(t)
	r := server.open(t)
	redisWantChanges(t, r, redisChanges{})
	redisDrain(r)
	server.signal(t, syscall.SIGSTOP)
	redisAwaitWake(t, r)
	server.signal(t, syscall.SIGCONT)
	redisEventually(t, "Redis goes on", func() error { _, _, err := r.Changes(t.Context()); return err })
}

func TestRedisHandshakeHangs(t *testing.T) {
	mute, err := net.Listen("tcp", "127.0.0.1:0") // what connects is never answered
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	redisWantNoConnection(t, "redis://"+mute.Addr().String())
	redisWantNoConnection(t, "rediss://"+mute.Addr().String())
}

func TestRedisDialHangs(t *testing.T) {
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(socket)
	if err := errors.Join(syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(socket, 0)); err != nil {
		t.Fatal(err)
	}
	bound, err := syscall.Getsockname(socket)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", bound.(*syscall.SockaddrInet4).Port)
	for err == nil { // until nobody else is let in
		var conn net.Conn
		if conn, err = net.DialTimeout("tcp", address, 100*time.Millisecond); err == nil {
			defer conn.Close()
		}
	}
	redisWantNoConnection(t, "redis://"+address)
}

func redisWantNoConnection(t *testing.T, address string) {
	t.Helper()
	r := openRedis(t, address, &certmagic.FileStorage{Path: t.TempDir()}, zap.NewNop())
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	_, err := r.Get(ctx, redisName(t, Videos, "v"))
	redisWantUnavailable(t, "Get", err)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v: want the context's", err)
	}
	_, err = r.Get(t.Context(), redisName(t, Videos, "v"))
	redisWantUnavailable(t, "Get without a deadline", err)
}

func TestRedisIsSomethingElse(t *testing.T) {
	for _, greeting := range []string{"HTTP/1.1 400 Bad Request\r\n\r\n", "+OK\r\n", "*1\r\n+OK\r\n", "$-1\r\n"} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Write([]byte(greeting))
				_ = conn.Close()
			}
		}()
		r := openRedis(t, "redis://"+listener.Addr().String(), &certmagic.FileStorage{Path: t.TempDir()}, zap.NewNop())
		_, err = r.Get(t.Context(), redisName(t, Videos, "v"))
		redisWantUnavailable(t, greeting, err)
	}
}

func TestRedisRestarts(t *testing.T) {
	server := startRedis(t, "--appendonly", "yes", "--appendfsync", "always")
	r, name := server.open(t), redisName(t, Videos, "v")
	redisPut(t, r, name, `1`)
	redisWantChanges(t, r, redisChanges{})
	_ = server.try("SHUTDOWN")
	<-server.exited
	_, err := r.Get(t.Context(), name)
	redisWantUnavailable(t, "Get", err)
	server.start(t)
	redisEventually(t, "Redis is back", func() error { return redisHas(t.Context(), r, name, `1`) })
	redisWantChanges(t, r, redisChanges{nil, true})
	redisDrain(r)
	redisPut(t, r, name, `2`)
	redisAwaitWake(t, r)
}

func TestRedisRestartsEmpty(t *testing.T) {
	server := startRedis(t)
	r, name := server.open(t), redisName(t, Videos, "v")
	redisPut(t, r, name, `1`)
	server.kill()
	server.start(t)
	redisEventually(t, "Redis is back", func() error {
		if _, err := r.Get(t.Context(), name); err == nil || !strings.Contains(err.Error(), "lost") {
			return fmt.Errorf("error %w: want one of the loss", err)
		}
		return nil
	})
	redisWantLost(t, r, name)
}

func TestRedisDownAtStart(t *testing.T) {
	server := startRedis(t)
	server.kill()
	r, name := server.open(t), redisName(t, Videos, "v")
	_, err := r.Get(t.Context(), name)
	redisWantUnavailable(t, "Get", err)
	redisWantUnavailable(t, "Update", redisTryPut(t.Context(), r, name, `1`))
	server.start(t)
	redisEventually(t, "Redis is up", func() error { return redisTryPut(t.Context(), r, name, `1`) })
	redisWant(t, r, name, `1`)
	r.Close()
	r.Close()
}

func TestRedisCloseLeavesNoConnection(t *testing.T) {
	server := startRedis(t)
	connections := func(want int) func() error {
		return func() error {
			list, err := server.try("CLIENT", "LIST").ToString()
			if got := strings.Count(list, "\n") - 1; err != nil || got != want {
				return fmt.Errorf("%d connections, %w: want %d", got, err, want)
			}
			return nil
		}
	}
	idle, hanging, name := server.open(t), server.open(t), redisName(t, Videos, "v")
	redisWant(t, idle, name, "")
	redisWant(t, hanging, name, "")
	redisEventually(t, "there is one connection each", connections(2))
	idle.Close()
	redisEventually(t, "one is closed", connections(1))

	server.signal(t, syscall.SIGSTOP)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	opening := server.open(t)
	for _, s := range []*Redis{hanging, opening} {
		_, err := s.Get(ctx, name)
		redisWantUnavailable(t, "Get", err)
		s.Close()
	}
	server.signal(t, syscall.SIGCONT)
	redisEventually(t, "the others are closed", connections(0))
}

// A call that has little time left and is the first to connect again must not
// spoil that for the others.
func TestRedisImpatientCallConnectsForOthers(t *testing.T) {
	server := startRedis(t)
	r, name := server.open(t), redisName(t, Videos, "v")
	redisPut(t, r, name, `1`)
	redisDrain(r)
	server.do(t, "CLIENT", "KILL", "TYPE", "normal")
	redisAwaitWake(t, r)
	server.signal(t, syscall.SIGSTOP)
	impatient, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	patient := make(chan error, 1)
	go func() {
		<-time.After(10 * time.Millisecond)
		patient <- redisHas(t.Context(), r, name, `1`)
	}()
	_, err := r.Get(impatient, name)
	redisWantUnavailable(t, "Get", err)
	server.signal(t, syscall.SIGCONT)
	if err := <-patient; err != nil {
		t.Error(err)
	}
}

func TestRedisReplica(t *testing.T) {
	server := startRedis(t)
	r, name := server.open(t), redisName(t, Videos, "v")
	redisPut(t, r, name, `1`)
	server.do(t, "REPLICAOF", "127.0.0.1", "1")
	redisWantUnavailable(t, "Update", redisTryPut(t.Context(), r, name, `2`), "READONLY")
	redisWant(t, r, name, `1`)
	redisWantChanges(t, r, redisChanges{})
	if _, err := redisAll(t.Context(), r, Videos); err != nil {
		t.Error(err)
	}
	server.do(t, "REPLICAOF", "NO", "ONE")
	redisPut(t, r, name, `2`)
}

func TestRedisMemoryIsFull(t *testing.T) {
	server := startRedis(t)
	r, name := server.open(t), redisName(t, Videos, "v")
	redisPut(t, r, name, `1`)
	redisWantChanges(t, r, redisChanges{})
	server.do(t, "CONFIG", "SET", "maxmemory", "1")
	redisWantUnavailable(t, "Update", redisTryPut(t.Context(), r, name, `2`), "OOM")
	redisWant(t, r, name, `1`)
	redisWantChanges(t, r, redisChanges{nil, true})
	server.do(t, "CONFIG", "SET", "maxmemory", "0")
	redisPut(t, r, name, `2`)
}

func TestRedisMayEvict(t *testing.T) {
	for policy, want := range map[string]int{"noeviction": 0, "volatile-lru": 0, "allkeys-lru": 1} {
		server := startRedis(t, "--maxmemory-policy", policy)
		core, logs := observer.New(zap.WarnLevel)
		r := openRedis(t, server.address(), &certmagic.FileStorage{Path: t.TempDir()}, zap.New(core))
		redisPut(t, r, redisName(t, Videos, "v"), `1`)
		redisPut(t, r, redisName(t, Videos, "v"), `2`)
		if got := logs.FilterMessageSnippet("noeviction").Len(); got != want {
			t.Errorf("%s: %d warnings: want %d", policy, got, want)
		}
	}
}

func TestRedisWrongType(t *testing.T) {
	server := startRedis(t)
	r, name := server.open(t), redisName(t, Videos, "v")
	redisPut(t, r, name, `1`)
	server.do(t, "SET", hashOf(Videos), "text")
	for _, s := range []Store{r, server.open(t)} {
		_, err := s.Get(t.Context(), name)
		redisWantUnavailable(t, "Get", err, "WRONGTYPE")
		redisWantUnavailable(t, "Update", redisTryPut(t.Context(), s, name, `1`), "WRONGTYPE")
		_, err = redisAll(t.Context(), s, Videos)
		redisWantUnavailable(t, "All", err, "WRONGTYPE")
		_, _, err = s.Changes(t.Context())
		redisWantUnavailable(t, "Changes", err, "WRONGTYPE")
	}
	redisWant(t, r, redisName(t, Keys, "k"), "")
}

func TestRedisDamagedValue(t *testing.T) {
	server := startRedis(t)
	r, name, whole := server.open(t), redisName(t, Videos, "v"), redisName(t, Videos, "whole")
	redisPut(t, r, whole, `1`)
	redisPut(t, r, redisName(t, Videos, "other"), `1`)
	redisPut(t, r, name, `{"secret":"value"}`)
	field := func(id string) string {
		reply := server.do(t, "HGET", hashOf(Videos), id)
		text, _ := reply.ToString()
		return text
	}
	raw, other := field("v"), field("other")
	for fault, bad := range map[string]string{
		"truncated":      raw[:len(raw)/2],
		"empty":          "",
		"flipped":        strings.Replace(raw, "secret", "sedret", 1),
		"not ours":       `"x"`,
		"somebody elses": other,
	} {
		server.do(t, "HSET", hashOf(Videos), "v", bad)
		object, err := r.Get(t.Context(), name)
		if err != nil || object.Data != nil || !errors.Is(object.Damage, ErrDamaged) {
			t.Errorf("%s: Get = %q, %v, %v: want ErrDamaged as its damage", fault, object.Data, object.Damage, err)
		}
		redisWant(t, r, whole, `1`)
		damaged := 0
		for object, err := range r.All(t.Context(), Videos) {
			if err != nil {
				t.Fatal(err)
			}
			if object.Damage != nil {
				damaged++
			}
		}
		if damaged != 1 {
			t.Errorf("%s: All finds %d damaged: want 1", fault, damaged)
		}
	}
	redisPut(t, r, name, `"mended"`)
	redisWant(t, r, name, `"mended"`)
	server.do(t, "HSET", hashOf(Videos), "v", "")
	err := r.Update(t.Context(), name, func(present Object) ([]byte, error) { return nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	redisWant(t, r, name, "")
}

func TestRedisPasswordIsNotTold(t *testing.T) {
	// Redis quotes the arguments of what it does not know, if not to the end.
	password := "hunter2" + strings.Repeat("-and-more", 20)
	server := startRedis(t, "--requirepass", "another", "--rename-command", "AUTH", "")
	socket := server.socket()
	for _, address := range []string{
		"unix://:" + password + "@" + socket,
		"unix://:" + password + "@" + socket + "?protocol=2",
		"unix://default:" + password + "@" + socket + ".none",
		"redis://:" + password + "@127.0.0.1:1/0",
		"redis://:" + password + "@host.invalid",
	} {
		core, logs := observer.New(zap.DebugLevel)
		r := openRedis(t, address, &certmagic.FileStorage{Path: t.TempDir()}, zap.New(core))
		_, err := r.Get(t.Context(), redisName(t, Videos, "v"))
		redisWantUnavailable(t, "Get", err)
		gossip := r.unavailable(fmt.Errorf("%q is not the password", password))
		if text := fmt.Sprint(err, gossip, logs.All()); strings.Contains(text, "hunter2") {
			t.Errorf("the password is told: %s", text)
		}
	}
}

func TestRedisAddressThatIsNone(t *testing.T) {
	for _, address := range []string{
		"", "hunter2", "http://:hunter2@host", "redis://:hunter2@host:port", "redis://:hunter2%zz@host",
		"redis://:1#hunter2@host", "redis://:1?hunter2@host", "redis://:1/hunter2@host", "redis:hunter2@host",
		"redis://host/hunter2", "redis://host?db=hunter2", "redis://host?hunter2", "unix://hunter2/socket", "unix://",
	} {
		_, err := NewRedis(address, &certmagic.FileStorage{Path: t.TempDir()}, zap.NewNop())
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: error %v: want one that does not quote it", address, err)
		}
	}
}

func TestRedisIsAnother(t *testing.T) {
	server := startRedis(t)
	local := &certmagic.FileStorage{Path: t.TempDir()}
	r, name := openRedis(t, server.address(), local, zap.NewNop()), redisName(t, Videos, "v")
	redisPut(t, r, name, `1`)
	server.do(t, "FLUSHALL") // another could not be at the same address
	redisWant(t, server.open(t), name, "")

	restarted := openRedis(t, server.address(), local, zap.NewNop())
	redisWantLost(t, restarted, name)
	_, err := restarted.Get(t.Context(), name)
	redisWantUnavailable(t, "Get", err, r.memory.key)

	if err := local.Delete(t.Context(), r.memory.key); err != nil {
		t.Fatal(err)
	}
	redisWantLost(t, restarted, name)
	accepting := openRedis(t, server.address(), local, zap.NewNop())
	redisWant(t, accepting, name, "")
	redisPut(t, accepting, name, `2`)
}

func TestRedisDatabaseIsAnother(t *testing.T) {
	server := startRedis(t)
	local := &certmagic.FileStorage{Path: t.TempDir()}
	zero, name := openRedis(t, server.address(), local, zap.NewNop()), redisName(t, Videos, "v")
	one := openRedis(t, server.address()+"?db=1", local, zap.NewNop())
	redisPut(t, zero, name, `0`)
	redisPut(t, one, name, `1`)
	server.do(t, "SWAPDB", "0", "1")
	redisWantLost(t, zero, name)
	redisWantLost(t, one, name)
	server.do(t, "SWAPDB", "0", "1")
	redisWant(t, zero, name, `0`)
	redisWant(t, one, name, `1`)
}

func TestRedisEpochIsReadableForPeople(t *testing.T) {
	server := startRedis(t)
	local := &certmagic.FileStorage{Path: t.TempDir()}
	r := openRedis(t, "unix://default:hunter2@"+server.socket(), local, zap.NewNop())
	server.do(t, "CONFIG", "SET", "requirepass", "hunter2")
	redisWant(t, r, redisName(t, Videos, "v"), "")
	raw, err := local.Load(t.Context(), r.memory.key)
	if err != nil {
		t.Fatal(err)
	}
	var got remembered
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Epoch) != 32 || got.Hint == "" || strings.Contains(string(raw), "hunter2") {
		t.Errorf("%s: want an epoch, a hint, and no password", raw)
	}
}

// redisLocal is a local storage with faults.
type redisLocal struct {
	certmagic.Storage
	load, store func(context.Context) error
}

func (l redisLocal) Load(ctx context.Context, key string) ([]byte, error) {
	if err := l.load(ctx); err != nil {
		return nil, err
	}
	return l.Storage.Load(ctx, key)
}

func (l redisLocal) Store(ctx context.Context, key string, value []byte) error {
	if err := l.store(ctx); err != nil {
		return err
	}
	return l.Storage.Store(ctx, key, value)
}

func TestRedisEpochCannotBeRead(t *testing.T) {
	server, name := startRedis(t), redisName(t, Videos, "v")
	fine := func(context.Context) error { return nil }
	files := &certmagic.FileStorage{Path: t.TempDir()}

	var fault error
	local := redisLocal{files, func(context.Context) error { return fault }, fine}
	r := openRedis(t, server.address(), local, zap.NewNop())
	fault = fs.ErrPermission
	_, err := r.Get(t.Context(), name)
	redisWantUnavailable(t, "Get", err, "permission denied", r.memory.key)
	if n, err := server.try("DBSIZE").AsInt64(); n != 0 || err != nil {
		t.Errorf("%d keys, %v: want Redis untouched", n, err)
	}
	fault = nil
	redisPut(t, r, name, `1`)

	for _, content := range []string{"", "{}", "[", `{"epoch":""}`} {
		if err := files.Store(t.Context(), r.memory.key, []byte(content)); err != nil {
			t.Fatal(err)
		}
		_, err := openRedis(t, server.address(), files, zap.NewNop()).Get(t.Context(), name)
		redisWantUnavailable(t, fmt.Sprintf("%q", content), err, r.memory.key)
	}
}

func TestRedisEpochReadHangs(t *testing.T) {
	server, name := startRedis(t), redisName(t, Videos, "v")
	heal := make(chan struct{})
	hang := func(context.Context) error { <-heal; return nil }
	local := redisLocal{&certmagic.FileStorage{Path: t.TempDir()}, hang, func(context.Context) error { return nil }}
	r := openRedis(t, server.address(), local, zap.NewNop())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := r.Get(ctx, name)
	redisWantUnavailable(t, "Get", err)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v: want the context's", err)
	}
	close(heal)
	redisEventually(t, "the storage goes on", func() error { return redisHas(t.Context(), r, name, "") })
}

func TestRedisEpochCannotBeWritten(t *testing.T) {
	server, name := startRedis(t), redisName(t, Videos, "v")
	local := redisLocal{
		&certmagic.FileStorage{Path: t.TempDir()},
		func(context.Context) error { return nil },
		func(context.Context) error { return os.ErrPermission },
	}
	core, logs := observer.New(zap.WarnLevel)
	r := openRedis(t, server.address(), local, zap.New(core))
	redisPut(t, r, name, `1`)
	redisWant(t, r, name, `1`)
	if got := logs.Len(); got != 1 {
		t.Errorf("%d warnings: want 1: %v", got, logs.All())
	}
	server.do(t, "FLUSHALL")
	redisWantLost(t, r, name)
}

// Of two nodes that are the first at the same time, neither may start anew what
// the other has started.
func TestRedisFirstUseByMany(t *testing.T) {
	server := startRedis(t)
	stores := make([]*Redis, 8)
	for i := range stores {
		stores[i] = server.open(t)
	}
	var wg sync.WaitGroup
	for i, s := range stores {
		wg.Go(func() {
			if err := redisTryPut(t.Context(), s, redisName(t, Videos, fmt.Sprint(i)), `1`); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, s := range stores {
		if all, err := redisAll(t.Context(), s, Videos); err != nil || len(all) != len(stores) {
			t.Errorf("%d objects, %v: want %d", len(all), err, len(stores))
		}
	}
}

func TestRedisCluster(t *testing.T) {
	port := redisFreePort(t)
	server := startRedis(t, "--port", port, "--bind", "127.0.0.1", "--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1")
	server.do(t, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
	address := "redis://127.0.0.1:" + port
	a := openRedis(t, address, &certmagic.FileStorage{Path: t.TempDir()}, zap.NewNop())
	b := openRedis(t, address, &certmagic.FileStorage{Path: t.TempDir()}, zap.NewNop())
	name := redisName(t, Videos, "v")
	redisEventually(t, "the cluster is up", func() error { return redisTryPut(t.Context(), a, name, `1`) })
	redisWant(t, b, name, `1`)
	redisWantChanges(t, b, redisChanges{})
	redisDrain(b)
	redisPut(t, a, name, `2`)
	redisAwaitWake(t, b)
	redisWantChanges(t, b, redisChanges{[]string{"videos/v"}, true})
	all, err := redisAll(t.Context(), b, Videos)
	if diff := cmp.Diff(map[string]string{"v": "2"}, all); err != nil || diff != "" {
		t.Errorf("All: %v (-want +got):\n%s", err, diff)
	}
	server.do(t, "FLUSHALL")
	redisWantLost(t, b, name)
}

func redisFreePort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
