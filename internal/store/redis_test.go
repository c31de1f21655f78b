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
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
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
	return openRedis(t, s.address(), newMemStorage(), zap.NewNop())
}

func openRedis(t *testing.T, address string, local certmagic.Storage, logger *zap.Logger) *Redis {
	t.Helper()
	r, err := NewRedis(address, as(local), as(logger))
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

// redisWantLost fails unless every call says that the store is unavailable.
func redisWantLost(t *testing.T, s Store, names ...Name) {
	t.Helper()
	for _, name := range names {
		_, err := s.Get(t.Context(), name)
		wantUnavailable(t, "Get "+name.String(), err, "lost")
		wantUnavailable(t, "Update "+name.String(), tryWrite(t.Context(), s, name, `"new"`), "lost")
		_, err = readAll(t.Context(), s, name.Collection())
		wantUnavailable(t, "All", err, "lost")
	}
	_, err := s.Changes(t.Context())
	wantUnavailable(t, "Changes", err, "lost")
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

func TestRedisUpdateGivesUpWhenAlwaysOvertaken(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	r, other, name := server.open(t), server.open(t), named(Videos, "v")
	attempts := 0
	err := r.Update(t.Context(), name, func(Object) ([]byte, error) {
		attempts++
		return []byte(`"mine"`), other.Update(t.Context(), name, increment)
	})
	if !errors.Is(err, ErrBusy) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("error %v: want ErrBusy and ErrUnavailable", err)
	}
	wantObject(t, r, name, fmt.Sprint(attempts))
}

// An old backup brings other stamps back, also for a node that was cut off when
// it was restored and hears only of the writes after that: they must not look
// like a continuation of what the node knows.
func TestRedisChangesAfterOldBackup(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	writer, name := server.open(t), named(Videos, "v")
	write(t, writer, name, `0`)
	backup := server.save(t)
	for _, later := range []int{0, 1, 2} {
		node := server.open(t)
		write(t, writer, name, `"lost"`)
		follow(t, node)
		server.restore(t, backup)
		for range later {
			if err := writer.Update(t.Context(), name, increment); err != nil {
				t.Fatal(err)
			}
		}
		wantChanges(t, node, Videos)
		wantChanges(t, node)
		wantObject(t, node, name, fmt.Sprint(later))
		server.restore(t, backup)
	}
}

func TestRedisWakes(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	a, b, name := server.open(t), server.open(t), named(Videos, "v")
	follow(t, b)
	redisDrain(b)
	for range 20 {
		if err := a.Update(t.Context(), name, increment); err != nil {
			t.Fatal(err)
		}
		redisAwaitWake(t, b)
		wantChanges(t, b, Videos)
	}
	server.do(t, "FLUSHALL")
	redisAwaitWake(t, b)
}

func TestRedisServerWithoutInvalidations(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	for _, parameter := range []string{"client_cache=0", "protocol=2"} {
		r := openRedis(t, server.address()+"?"+parameter, newMemStorage(), zap.NewNop())
		if r.Wake() != nil {
			t.Errorf("%s: Wake is not nil", parameter)
		}
		name := named(Videos, parameter[:6])
		follow(t, r)
		write(t, r, name, `1`)
		wantObject(t, r, name, `1`)
		wantChanges(t, r, Videos)
	}
}

// Redis answers after FLUSHALL as if nothing had ever been there: as if no key
// had been revoked.
func TestRedisFlushAll(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	local := newMemStorage()
	r := openRedis(t, server.address(), local, zap.NewNop())
	known, unknown := named(Videos, "known"), named(Keys, "unknown")
	write(t, r, known, `1`)
	follow(t, r)
	backup := server.save(t)

	server.do(t, "FLUSHALL")
	redisWantLost(t, r, known, unknown)
	restarted := openRedis(t, server.address(), local, zap.NewNop())
	redisWantLost(t, restarted, known, unknown)

	// Somebody who has never been here starts anew. That is not ours either.
	stranger := server.open(t)
	write(t, stranger, unknown, `2`)
	redisWantLost(t, r, known, unknown)
	redisWantLost(t, restarted, known, unknown)

	server.restore(t, backup)
	for _, s := range []Store{r, restarted} {
		wantObject(t, s, known, `1`)
		wantChanges(t, s, collections...) // some data may be older
		wantChanges(t, s)
	}
	redisWantLost(t, stranger, known, unknown)
}

func TestRedisEvictedHash(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	r, video, key := server.open(t), named(Videos, "v"), named(Keys, "k")
	write(t, r, video, `1`)
	write(t, r, key, `1`)
	follow(t, r)
	backup := server.save(t)
	server.do(t, "DEL", hashOf(Videos))
	redisWantLost(t, r, video)
	wantObject(t, r, key, `1`)

	// A node that has just come must not make a whole of the rest.
	newcomer := server.open(t)
	_, err := newcomer.Get(t.Context(), key)
	wantUnavailable(t, "Get", err, "in part", hashOf(Videos), "HSET '{signed_playback}:videos' '#epoch'")
	redisWantLost(t, r, video)

	server.do(t, "HSET", hashOf(Videos), epochField, r.session.Load().epoch)
	wantObject(t, newcomer, video, "")
	wantObject(t, r, video, "")
	wantChanges(t, r, collections...)
	server.restore(t, backup)
	wantObject(t, r, video, `1`)

	server.do(t, "DEL", stateKey)
	wantUnavailable(t, "Update", tryWrite(t.Context(), r, video, `2`), "lost", stateKey)
	_, err = server.open(t).Get(t.Context(), key)
	wantUnavailable(t, "Get", err, "in part", "HSET '{signed_playback}:state' 'epoch'")
}

// Nothing may be written into what is not ours.
func TestRedisFlushAllDuringUpdate(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	r := server.open(t)
	err := r.Update(t.Context(), named(Videos, "v"), func(Object) ([]byte, error) {
		server.do(t, "FLUSHALL")
		return []byte(`1`), nil
	})
	wantUnavailable(t, "Update", err, "lost")
	if n, err := server.try("DBSIZE").AsInt64(); n != 0 || err != nil {
		t.Errorf("%d keys, %v: want nothing written", n, err)
	}
}

func TestRedisFlushAllDuringScan(t *testing.T) {
	t.Parallel()
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
	wantUnavailable(t, fmt.Sprintf("All after %d objects", read), last, "lost")
}

// redisFill writes many videos at once, past the store.
func redisFill(t *testing.T, server *redisServer, r *Redis, n int) map[string]string {
	t.Helper()
	wantObject(t, r, named(Videos, "none"), "")
	want := make(map[string]string)
	args := []string{"HSET", hashOf(Videos)}
	for i := range n {
		name := named(Videos, fmt.Sprintf("video-%d", i))
		raw, err := encode(name, fmt.Appendf(nil, `{"n":%d}`, i))
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
	t.Parallel()
	server := startRedis(t)
	r := server.open(t)
	want := redisFill(t, server, r, 5000)
	server.do(t, "HSET", hashOf(Videos), "../x", "1", "", "2") // no name leads to them
	wantAll(t, r, Videos, want)
}

func TestRedisHangs(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	r, name := server.open(t), named(Videos, "v")
	write(t, r, name, `1`)
	server.signal(t, syscall.SIGSTOP)
	calls := map[string]func(context.Context) error{
		"Get":     func(ctx context.Context) error { _, err := r.Get(ctx, name); return err },
		"Update":  func(ctx context.Context) error { return tryWrite(ctx, r, name, `1`) },
		"All":     func(ctx context.Context) error { _, err := readAll(ctx, r, Videos); return err },
		"Changes": func(ctx context.Context) error { _, err := r.Changes(ctx); return err },
	}
	for what, call := range calls {
		// That the error is the context's shows that it is what ended the call.
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		err := call(ctx)
		cancel()
		wantUnavailable(t, what, err)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: error %v: want the context's", what, err)
		}
	}
	server.signal(t, syscall.SIGCONT)
	redisEventually(t, "Redis goes on", func() error { return hasObject(t.Context(), r, name, `1`) })
}

// The queue of a connection has an end, and rueidis waits there without looking
// at the context.
func TestRedisHangsUnderLoad(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	r, name := server.open(t), named(Videos, "v")
	write(t, r, name, `1`)
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
	redisEventually(t, "Redis goes on", func() error { return hasObject(t.Context(), r, name, `1`) })
}

// A connection that nothing comes from is given up without anybody's doing: the
// end of it is worth a look at the changes.
func TestRedisHangIsNoticed(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	r := server.open(t)
	follow(t, r)
	redisDrain(r)
	server.signal(t, syscall.SIGSTOP)
	redisAwaitWake(t, r)
	server.signal(t, syscall.SIGCONT)
	redisEventually(t, "Redis goes on", func() error { _, err := r.Changes(t.Context()); return err })
}

func TestRedisHandshakeHangs(t *testing.T) {
	t.Parallel()
	mute, err := net.Listen("tcp", "127.0.0.1:0") // what connects is never answered
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	redisWantNoConnection(t, "redis://"+mute.Addr().String())
	redisWantNoConnection(t, "rediss://"+mute.Addr().String())
}

func TestRedisDialHangs(t *testing.T) {
	t.Parallel()
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
	r := openRedis(t, address, newMemStorage(), zap.NewNop())
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	_, err := r.Get(ctx, named(Videos, "v"))
	wantUnavailable(t, "Get", err)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v: want the context's", err)
	}
	_, err = r.Get(t.Context(), named(Videos, "v"))
	wantUnavailable(t, "Get without a deadline", err)
}

func TestRedisIsSomethingElse(t *testing.T) {
	t.Parallel()
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
		r := openRedis(t, "redis://"+listener.Addr().String(), newMemStorage(), zap.NewNop())
		_, err = r.Get(t.Context(), named(Videos, "v"))
		wantUnavailable(t, greeting, err)
	}
}

func TestRedisRestarts(t *testing.T) {
	t.Parallel()
	server := startRedis(t, "--appendonly", "yes", "--appendfsync", "always")
	r, name := server.open(t), named(Videos, "v")
	write(t, r, name, `1`)
	follow(t, r)
	_ = server.try("SHUTDOWN")
	<-server.exited
	_, err := r.Get(t.Context(), name)
	wantUnavailable(t, "Get", err)
	server.start(t)
	redisEventually(t, "Redis is back", func() error { return hasObject(t.Context(), r, name, `1`) })
	wantChanges(t, r)
	redisDrain(r)
	write(t, r, name, `2`)
	redisAwaitWake(t, r)
}

func TestRedisRestartsEmpty(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	r, name := server.open(t), named(Videos, "v")
	write(t, r, name, `1`)
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
	t.Parallel()
	server := startRedis(t)
	server.kill()
	r, name := server.open(t), named(Videos, "v")
	_, err := r.Get(t.Context(), name)
	wantUnavailable(t, "Get", err)
	wantUnavailable(t, "Update", tryWrite(t.Context(), r, name, `1`))
	server.start(t)
	redisEventually(t, "Redis is up", func() error { return tryWrite(t.Context(), r, name, `1`) })
	wantObject(t, r, name, `1`)
	r.Close()
	r.Close()
}

func TestRedisCloseLeavesNoConnection(t *testing.T) {
	t.Parallel()
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
	idle, hanging, name := server.open(t), server.open(t), named(Videos, "v")
	wantObject(t, idle, name, "")
	wantObject(t, hanging, name, "")
	redisEventually(t, "there is one connection each", connections(2))
	idle.Close()
	redisEventually(t, "one is closed", connections(1))

	server.signal(t, syscall.SIGSTOP)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	opening := server.open(t)
	for _, s := range []*Redis{hanging, opening} {
		_, err := s.Get(ctx, name)
		wantUnavailable(t, "Get", err)
		s.Close()
	}
	server.signal(t, syscall.SIGCONT)
	redisEventually(t, "the others are closed", connections(0))
}

// A call that has little time left and is the first to connect again must not
// spoil that for the others.
func TestRedisImpatientCallConnectsForOthers(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	r, name := server.open(t), named(Videos, "v")
	write(t, r, name, `1`)
	redisDrain(r)
	server.do(t, "CLIENT", "KILL", "TYPE", "normal")
	redisAwaitWake(t, r)
	server.signal(t, syscall.SIGSTOP)
	impatient, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	patient := make(chan error, 1)
	go func() { patient <- hasObject(t.Context(), r, name, `1`) }()
	_, err := r.Get(impatient, name)
	wantUnavailable(t, "Get", err)
	server.signal(t, syscall.SIGCONT)
	if err := <-patient; err != nil {
		t.Error(err)
	}
}

func TestRedisReplica(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	r, name := server.open(t), named(Videos, "v")
	write(t, r, name, `1`)
	server.do(t, "REPLICAOF", "127.0.0.1", "1")
	wantUnavailable(t, "Update", tryWrite(t.Context(), r, name, `2`), "READONLY")
	wantObject(t, r, name, `1`)
	follow(t, r)
	if _, err := readAll(t.Context(), r, Videos); err != nil {
		t.Error(err)
	}
	server.do(t, "REPLICAOF", "NO", "ONE")
	write(t, r, name, `2`)
}

func TestRedisMemoryIsFull(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	r, name := server.open(t), named(Videos, "v")
	write(t, r, name, `1`)
	follow(t, r)
	server.do(t, "CONFIG", "SET", "maxmemory", "1")
	wantUnavailable(t, "Update", tryWrite(t.Context(), r, name, `2`), "OOM")
	wantObject(t, r, name, `1`)
	wantChanges(t, r)
	server.do(t, "CONFIG", "SET", "maxmemory", "0")
	write(t, r, name, `2`)
}

func TestRedisMayEvict(t *testing.T) {
	t.Parallel()
	for policy, want := range map[string]int{"noeviction": 0, "volatile-lru": 0, "allkeys-lru": 1} {
		server := startRedis(t, "--maxmemory-policy", policy)
		core, logs := observer.New(zap.WarnLevel)
		r := openRedis(t, server.address(), newMemStorage(), zap.New(core))
		write(t, r, named(Videos, "v"), `1`)
		write(t, r, named(Videos, "v"), `2`)
		if got := logs.FilterMessageSnippet("noeviction").Len(); got != want {
			t.Errorf("%s: %d warnings: want %d", policy, got, want)
		}
	}
}

func TestRedisWrongType(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	r, name := server.open(t), named(Videos, "v")
	write(t, r, name, `1`)
	server.do(t, "SET", hashOf(Videos), "text")
	for _, s := range []Store{r, server.open(t)} {
		_, err := s.Get(t.Context(), name)
		wantUnavailable(t, "Get", err, "WRONGTYPE")
		wantUnavailable(t, "Update", tryWrite(t.Context(), s, name, `1`), "WRONGTYPE")
		_, err = readAll(t.Context(), s, Videos)
		wantUnavailable(t, "All", err, "WRONGTYPE")
		_, err = s.Changes(t.Context())
		wantUnavailable(t, "Changes", err, "WRONGTYPE")
	}
	wantObject(t, r, named(Keys, "k"), "")
}

func TestRedisDamagedValue(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	r, name, whole := server.open(t), named(Videos, "v"), named(Videos, "whole")
	write(t, r, whole, `1`)
	write(t, r, named(Videos, "other"), `1`)
	write(t, r, name, `{"secret":"value"}`)
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
		wantObject(t, r, whole, `1`)
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
	write(t, r, name, `"mended"`)
	wantObject(t, r, name, `"mended"`)
	server.do(t, "HSET", hashOf(Videos), "v", "")
	err := r.Update(t.Context(), name, func(present Object) ([]byte, error) { return nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	wantObject(t, r, name, "")
}

func TestRedisPasswordIsNotTold(t *testing.T) {
	t.Parallel()
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
		r := openRedis(t, address, newMemStorage(), zap.New(core))
		_, err := r.Get(t.Context(), named(Videos, "v"))
		wantUnavailable(t, "Get", err)
		gossip := r.unavailable(fmt.Errorf("%q is not the password", password))
		if text := fmt.Sprint(err, gossip, logs.All()); strings.Contains(text, "hunter2") {
			t.Errorf("the password is told: %s", text)
		}
	}
}

func TestRedisAddressThatIsNone(t *testing.T) {
	t.Parallel()
	for _, address := range []string{
		"", "hunter2", "http://:hunter2@host", "redis://:hunter2@host:port", "redis://:hunter2%zz@host",
		"redis://:1#hunter2@host", "redis://:1?hunter2@host", "redis://:1/hunter2@host", "redis:hunter2@host",
		"redis://host/hunter2", "redis://host?db=hunter2", "redis://host?hunter2", "unix://hunter2/socket", "unix://",
	} {
		_, err := NewRedis(address, as[certmagic.Storage](newMemStorage()), zap.NewNop)
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: error %v: want one that does not quote it", address, err)
		}
	}
}

func TestRedisIsAnother(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	local := newMemStorage()
	r, name := openRedis(t, server.address(), local, zap.NewNop()), named(Videos, "v")
	write(t, r, name, `1`)
	server.do(t, "FLUSHALL") // another could not be at the same address
	wantObject(t, server.open(t), name, "")

	restarted := openRedis(t, server.address(), local, zap.NewNop())
	redisWantLost(t, restarted, name)
	_, err := restarted.Get(t.Context(), name)
	wantUnavailable(t, "Get", err, r.memory.key)

	if err := local.Delete(t.Context(), r.memory.key); err != nil {
		t.Fatal(err)
	}
	redisWantLost(t, restarted, name)
	accepting := openRedis(t, server.address(), local, zap.NewNop())
	wantObject(t, accepting, name, "")
	write(t, accepting, name, `2`)
}

func TestRedisDatabaseIsAnother(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	local := newMemStorage()
	zero, name := openRedis(t, server.address(), local, zap.NewNop()), named(Videos, "v")
	one := openRedis(t, server.address()+"?db=1", local, zap.NewNop())
	write(t, zero, name, `0`)
	write(t, one, name, `1`)
	server.do(t, "SWAPDB", "0", "1")
	redisWantLost(t, zero, name)
	redisWantLost(t, one, name)
	server.do(t, "SWAPDB", "0", "1")
	wantObject(t, zero, name, `0`)
	wantObject(t, one, name, `1`)
}

func TestRedisEpochIsReadableForPeople(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	local := newMemStorage()
	r := openRedis(t, "unix://default:hunter2@"+server.socket(), local, zap.NewNop())
	server.do(t, "CONFIG", "SET", "requirepass", "hunter2")
	wantObject(t, r, named(Videos, "v"), "")
	raw, err := local.Load(t.Context(), r.memory.key)
	if err != nil {
		t.Fatal(err)
	}
	var got remembered
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if got.Epoch != r.session.Load().epoch || got.Hint == "" || strings.Contains(string(raw), "hunter2") {
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
	t.Parallel()
	server, name := startRedis(t), named(Videos, "v")
	fine := func(context.Context) error { return nil }
	files := newMemStorage()

	var fault error
	local := redisLocal{files, func(context.Context) error { return fault }, fine}
	r := openRedis(t, server.address(), local, zap.NewNop())
	fault = fs.ErrPermission
	_, err := r.Get(t.Context(), name)
	wantUnavailable(t, "Get", err, "permission denied", r.memory.key)
	if n, err := server.try("DBSIZE").AsInt64(); n != 0 || err != nil {
		t.Errorf("%d keys, %v: want Redis untouched", n, err)
	}
	fault = nil
	write(t, r, name, `1`)

	for _, content := range []string{"", "{}", "[", `{"epoch":""}`} {
		if err := files.Store(t.Context(), r.memory.key, []byte(content)); err != nil {
			t.Fatal(err)
		}
		_, err := openRedis(t, server.address(), files, zap.NewNop()).Get(t.Context(), name)
		wantUnavailable(t, fmt.Sprintf("%q", content), err, r.memory.key)
	}
}

func TestRedisEpochReadHangs(t *testing.T) {
	t.Parallel()
	server, name := startRedis(t), named(Videos, "v")
	heal := make(chan struct{})
	hang := func(context.Context) error { <-heal; return nil }
	local := redisLocal{newMemStorage(), hang, func(context.Context) error { return nil }}
	r := openRedis(t, server.address(), local, zap.NewNop())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := r.Get(ctx, name)
	wantUnavailable(t, "Get", err)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v: want the context's", err)
	}
	close(heal)
	redisEventually(t, "the storage goes on", func() error { return hasObject(t.Context(), r, name, "") })
}

func TestRedisEpochCannotBeWritten(t *testing.T) {
	t.Parallel()
	server, name := startRedis(t), named(Videos, "v")
	local := redisLocal{
		newMemStorage(),
		func(context.Context) error { return nil },
		func(context.Context) error { return os.ErrPermission },
	}
	core, logs := observer.New(zap.WarnLevel)
	r := openRedis(t, server.address(), local, zap.New(core))
	write(t, r, name, `1`)
	wantObject(t, r, name, `1`)
	if got := logs.Len(); got != 1 {
		t.Errorf("%d warnings: want 1: %v", got, logs.All())
	}
	server.do(t, "FLUSHALL")
	redisWantLost(t, r, name)
}

// Of two nodes that are the first at the same time, neither may start anew what
// the other has started.
func TestRedisFirstUseByMany(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	stores := make([]*Redis, 8)
	for i := range stores {
		stores[i] = server.open(t)
	}
	var wg sync.WaitGroup
	for i, s := range stores {
		wg.Go(func() {
			if err := tryWrite(t.Context(), s, named(Videos, fmt.Sprint(i)), `1`); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, s := range stores {
		if all, err := readAll(t.Context(), s, Videos); err != nil || len(all) != len(stores) {
			t.Errorf("%d objects, %v: want %d", len(all), err, len(stores))
		}
	}
}

func TestRedisCluster(t *testing.T) {
	t.Parallel()
	port := redisFreePort(t)
	server := startRedis(t, "--port", port, "--bind", "127.0.0.1", "--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1")
	server.do(t, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
	address := "redis://127.0.0.1:" + port
	a := openRedis(t, address, newMemStorage(), zap.NewNop())
	b := openRedis(t, address, newMemStorage(), zap.NewNop())
	name := named(Videos, "v")
	redisEventually(t, "the cluster is up", func() error { return tryWrite(t.Context(), a, name, `1`) })
	wantObject(t, b, name, `1`)
	follow(t, b)
	redisDrain(b)
	write(t, a, name, `2`)
	redisAwaitWake(t, b)
	wantChanges(t, b, Videos)
	wantAll(t, b, Videos, map[string]string{"v": "2"})
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
