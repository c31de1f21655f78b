package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
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

// redisPatience is how long a test waits for an event of a real server.
const redisPatience = time.Minute

// redisServer is a redis-server of a test's own, on a unix socket.
type redisServer struct {
	dir    string
	args   []string
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has exited
}

func startRedis(t *testing.T, args ...string) *redisServer {
	t.Helper()
	s := &redisServer{dir: t.TempDir(), args: args}
	t.Cleanup(s.kill)
	s.start(t)
	return s
}

// startCluster starts a server that is a whole cluster, on a TCP port, and returns its
// address. If another process takes the port first, the server exits, and the test tries
// another port.
func startCluster(t *testing.T) (*redisServer, string) {
	t.Helper()
	for range 20 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(listener.Addr().String())
		_ = listener.Close()
		s := &redisServer{dir: t.TempDir(), args: []string{
			"--port", port, "--bind", "127.0.0.1", "--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1",
		}}
		t.Cleanup(s.kill)
		if s.tryStart(t) {
			s.do(t, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
			return s, "redis://127.0.0.1:" + port
		}
	}
	t.Fatal("redis-server has exited on each of 20 ports")
	return nil, ""
}

// start runs the server until it answers, perhaps with an error.
func (s *redisServer) start(t *testing.T) {
	t.Helper()
	if !s.tryStart(t) {
		t.Fatalf("redis-server has exited; its log is in %s", s.dir)
	}
}

// tryStart is start, and reports whether the server still runs.
func (s *redisServer) tryStart(t *testing.T) (running bool) {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatalf("redis-server is missing: install the Debian package redis-server: %v", err)
	}
	args := append([]string{"--port", "0", "--unixsocket", s.socket(), "--dir", s.dir, "--save", "", "--logfile", "log"}, s.args...)
	cmd, exited := exec.Command(path, args...), make(chan struct{})
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { defer close(exited); _ = cmd.Wait() }()
	s.cmd, s.exited = cmd, exited
	redisEventually(t, "redis-server answers", func() error {
		select {
		case <-exited:
			return nil
		default:
		}
		conn, err := net.Dial("unix", s.socket())
		if err != nil {
			return err
		}
		running = true
		return conn.Close()
	})
	return running
}

// kill ends the server even if it has been stopped.
func (s *redisServer) kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		<-s.exited
		s.cmd = nil
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

// save returns the data of the server, for restore.
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
	return openRedis(t, s.address(), newMemStorage())
}

func openRedis(t *testing.T, address string, local *memStorage) *Redis {
	t.Helper()
	r, _ := loggedRedis(t, address, local)
	return r
}

func loggedRedis(t *testing.T, address string, local *memStorage) (*Redis, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	r := unstartedRedis(t, address, local, zap.New(core))
	r.Start()
	return r, logs
}

func unstartedRedis(t *testing.T, address string, local certmagic.Storage, logger *zap.Logger) *Redis {
	t.Helper()
	r, err := NewRedis(address, as(local), as(logger), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// startRedisWith starts a server with the object videos/v, whose data is 1, and opens a node
// that is up to date.
func startRedisWith(t *testing.T, args ...string) (*redisServer, *Redis, Name) {
	t.Helper()
	server, name := startRedis(t, args...), named(Videos, "v")
	r := server.open(t)
	write(t, r, name, `1`)
	follow(t, r)
	redisDrain(r)
	return server, r, name
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

// pause stops a server while do runs, and waits until it answers again.
func (s *redisServer) pause(t *testing.T, r *Redis, do func()) {
	t.Helper()
	signal := func(signal syscall.Signal) {
		if err := s.cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGSTOP)
	do()
	signal(syscall.SIGCONT)
	redisEventually(t, "Redis goes on", func() error { _, err := r.Stamps(t.Context()); return err })
}

// wantAllUnavailable checks that every call returns ErrUnavailable with the reason.
func wantAllUnavailable(t *testing.T, why string, s Store, names ...Name) {
	t.Helper()
	for _, name := range names {
		_, err := s.Get(t.Context(), name, Server)
		wantUnavailable(t, "Get "+name.String(), err, why)
		wantUnavailable(t, "Update "+name.String(), tryWrite(t.Context(), s, name, `"new"`), why)
		_, err = readAll(t.Context(), s, name.Collection())
		wantUnavailable(t, "All", err, why)
	}
	_, err := s.Stamps(t.Context())
	wantUnavailable(t, "Stamps", err, why)
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
	server, r, name := startRedisWith(t)
	other, attempts := server.open(t), 0
	err := r.Update(t.Context(), name, func(Object) ([]byte, error) {
		attempts++
		return []byte(`"mine"`), other.Update(t.Context(), name, increment)
	})
	if !errors.Is(err, ErrBusy) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("Update = %v, want ErrBusy and ErrUnavailable", err)
	}
	wantObject(t, r, name, fmt.Sprint(1+attempts))
}

// While the server refuses writes, nothing changes and nothing is announced.
func TestRedisThatDoesNotWrite(t *testing.T) {
	t.Parallel()
	for why, commands := range map[string][2][]string{
		"READONLY": {{"REPLICAOF", "127.0.0.1", "1"}, {"REPLICAOF", "NO", "ONE"}},
		"OOM":      {{"CONFIG", "SET", "maxmemory", "1"}, {"CONFIG", "SET", "maxmemory", "0"}},
	} {
		server, r, name := startRedisWith(t)
		server.do(t, commands[0]...)
		wantUnavailable(t, "Update", tryWrite(t.Context(), r, name, `2`), why)
		wantObject(t, r, name, `1`)
		wantChanges(t, r)
		wantAll(t, r, Videos, map[string]string{"v": "1"})
		server.do(t, commands[1]...)
		write(t, r, name, `2`)
	}
}

func TestRedisWrongType(t *testing.T) {
	t.Parallel()
	for _, key := range []string{hashOf(Videos), stateKey} {
		server, r, name := startRedisWith(t)
		server.do(t, "SET", key, "text")
		if key == stateKey {
			wantUnavailable(t, "Update", tryWrite(t.Context(), r, name, `2`), "WRONGTYPE")
			continue
		}
		for _, s := range []Store{r, server.open(t)} {
			wantAllUnavailable(t, "WRONGTYPE", s, name)
		}
		wantObject(t, r, named(Keys, "k"), "")
	}
}

// An old backup contains other stamps than the node knows, also if the node was disconnected
// during the restore and hears only of later writes: these must not look like a continuation
// of the data that the node knows.
func TestRedisChangesAfterOldBackup(t *testing.T) {
	t.Parallel()
	server, writer, name := startRedisWith(t)
	backup := server.save(t)
	for later := range 3 {
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
		wantObject(t, node, name, fmt.Sprint(1+later))
		server.restore(t, backup)
	}
}

// A change wakes the other nodes, also in a cluster, and so does FLUSHALL. A server without
// notifications is polled.
func TestRedisWakes(t *testing.T) {
	t.Parallel()
	single := startRedis(t)
	cluster, clusterAddress := startCluster(t)
	for address, server := range map[string]*redisServer{single.address(): single, clusterAddress: cluster} {
		a, b, name := openRedis(t, address, newMemStorage()), openRedis(t, address, newMemStorage()), named(Videos, "v")
		redisEventually(t, "the server is up", func() error { return tryWrite(t.Context(), a, name, `1`) })
		follow(t, b)
		redisDrain(b)
		for range 20 {
			if err := a.Update(t.Context(), name, increment); err != nil {
				t.Fatal(err)
			}
			redisAwaitWake(t, b)
			wantChanges(t, b, Videos)
		}
		wantAll(t, b, Videos, map[string]string{"v": "21"})
		server.do(t, "FLUSHALL")
		redisAwaitWake(t, b)
		wantAllUnavailable(t, "lost", b, name)
	}
	polled := startRedis(t)
	for _, parameter := range []string{"client_cache=0", "protocol=2"} {
		r, name := openRedis(t, polled.address()+"?"+parameter, newMemStorage()), named(Videos, parameter[:6])
		if r.Wake() != nil {
			t.Errorf("%s: Wake is not nil", parameter)
		}
		follow(t, r)
		write(t, r, name, `1`)
		wantObject(t, r, name, `1`)
		wantChanges(t, r, Videos)
	}
}

// After FLUSHALL, Redis answers as if it had always been empty, and no key revoked.
func TestRedisFlushAll(t *testing.T) {
	t.Parallel()
	server, local := startRedis(t), newMemStorage()
	r := openRedis(t, server.address(), local)
	known, unknown := named(Videos, "known"), named(Keys, "unknown")
	write(t, r, known, `1`)
	follow(t, r)
	backup := server.save(t)

	server.do(t, "FLUSHALL")
	wantAllUnavailable(t, "lost", r, known, unknown)
	restarted := openRedis(t, server.address(), local)
	wantAllUnavailable(t, r.memory.key, restarted, known, unknown)

	// A node that has never seen this Redis starts new data. The other nodes do not use it.
	stranger := server.open(t)
	write(t, stranger, unknown, `2`)
	wantAllUnavailable(t, "lost", r, known, unknown)
	wantAllUnavailable(t, "lost", restarted, known, unknown)

	strangers := server.save(t)
	server.restore(t, backup)
	for _, s := range []Store{r, restarted} {
		wantObject(t, s, known, `1`)
		wantChanges(t, s, collections...) // some data may be older
		wantChanges(t, s)
	}
	wantAllUnavailable(t, "lost", stranger, known, unknown)

	// To accept the present data, an operator removes the file and restarts the node.
	server.restore(t, strangers)
	if err := local.Delete(t.Context(), r.memory.key); err != nil {
		t.Fatal(err)
	}
	wantAllUnavailable(t, "lost", restarted, known)
	accepting := openRedis(t, server.address(), local)
	wantObject(t, accepting, unknown, `2`)
	write(t, accepting, known, `2`)
}

func TestRedisEvictedHash(t *testing.T) {
	t.Parallel()
	server, r, video := startRedisWith(t)
	key := named(Keys, "k")
	write(t, r, key, `1`)
	follow(t, r)
	backup := server.save(t)
	server.do(t, "DEL", hashOf(Videos))
	wantAllUnavailable(t, "lost", r, video)
	wantObject(t, r, key, `1`)

	// A new node must not make the rest look whole.
	newcomer := server.open(t)
	_, err := newcomer.Get(t.Context(), key, Server)
	wantUnavailable(t, "Get", err, "in part", hashOf(Videos), "HSET '{signed_playback}:videos' '#epoch'")
	wantAllUnavailable(t, "lost", r, video)

	server.do(t, "HSET", hashOf(Videos), epochField, r.session.Load().epoch)
	wantObject(t, newcomer, video, "")
	wantObject(t, r, video, "")
	wantChanges(t, r, collections...)
	server.restore(t, backup)
	wantObject(t, r, video, `1`)

	server.do(t, "DEL", stateKey)
	wantUnavailable(t, "Update", tryWrite(t.Context(), r, video, `2`), "lost", stateKey)
	_, err = server.open(t).Get(t.Context(), key, Server)
	wantUnavailable(t, "Get", err, "in part", "HSET '{signed_playback}:state' 'epoch'")
}

// Data is lost during a call: the call writes nothing into other data, and a list does not
// look complete. A list skips fields that are no ids, and reads a large collection in parts.
func TestRedisFlushAllMeanwhile(t *testing.T) {
	t.Parallel()
	server, r, name := startRedisWith(t)
	const many = 5000
	want, args := map[string]string{"v": "1"}, []string{"HSET", hashOf(Videos), "../x", "1", "", "2"}
	for i := range many {
		id := fmt.Sprintf("video-%d", i)
		want[id] = fmt.Sprintf(`{"n":%d}`, i)
		raw, err := encode(named(Videos, id), []byte(want[id]))
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, id, string(raw))
	}
	server.do(t, args...)
	server.do(t, "CONFIG", "RESETSTAT")
	wantAll(t, r, Videos, want)
	reply := server.do(t, "INFO", "commandstats")
	if stats, err := reply.ToString(); err != nil || strings.Contains(stats, "cmdstat_hkeys") {
		t.Errorf("one command reads all names of a large collection, and Redis answers nobody else meanwhile: %v\n%s", err, stats)
	}
	read := 0
	var last error
	for _, err := range All(t.Context(), r, Videos) {
		if read++; read == 1 {
			server.do(t, "FLUSHALL")
		}
		last = err
	}
	wantUnavailable(t, fmt.Sprintf("All after %d objects", read), last, "lost")

	r = server.open(t)
	err := r.Update(t.Context(), name, func(Object) ([]byte, error) {
		server.do(t, "FLUSHALL")
		return []byte(`1`), nil
	})
	wantUnavailable(t, "Update", err, "lost")
	if n, err := server.try("DBSIZE").AsInt64(); n != 0 || err != nil {
		t.Errorf("%d keys, %v, want nothing written", n, err)
	}
}

func TestRedisDatabaseIsAnother(t *testing.T) {
	t.Parallel()
	server, local, name := startRedis(t), newMemStorage(), named(Videos, "v")
	zero, one := openRedis(t, server.address(), local), openRedis(t, server.address()+"?db=1", local)
	write(t, zero, name, `0`)
	write(t, one, name, `1`)
	server.do(t, "SWAPDB", "0", "1")
	wantAllUnavailable(t, "lost", zero, name)
	wantAllUnavailable(t, "lost", one, name)
	server.do(t, "SWAPDB", "0", "1")
	wantObject(t, zero, name, `0`)
	wantObject(t, one, name, `1`)
}

// S6: the server hangs. Each call ends with its context, also when the queue of the
// connection is full, for which rueidis waits without the context. A silent connection is
// closed, which wakes the node.
func TestRedisHangs(t *testing.T) {
	t.Parallel()
	server, r, name := startRedisWith(t)
	calls := map[string]func(context.Context) error{
		"Get":    func(ctx context.Context) error { _, err := r.Get(ctx, name, Server); return err },
		"Update": func(ctx context.Context) error { return tryWrite(ctx, r, name, `1`) },
		"All":    func(ctx context.Context) error { _, err := readAll(ctx, r, Videos); return err },
		"Stamps": func(ctx context.Context) error { _, err := r.Stamps(ctx); return err },
	}
	wantEnded := func(what string, patience time.Duration, times int) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		var wg sync.WaitGroup
		for range times {
			wg.Go(func() {
				err := calls[what](ctx)
				if wantUnavailable(t, what, err); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s = %v, want the context's error in it", what, err)
				}
			})
		}
		wg.Wait()
	}
	server.pause(t, r, func() {
		for what := range calls {
			wantEnded(what, 50*time.Millisecond, 1)
		}
		wantEnded("Get", 300*time.Millisecond, 3000)
	})
	wantObject(t, r, name, `1`)
	redisDrain(r)
	server.pause(t, r, func() { redisAwaitWake(t, r) })
}

// A call that reconnects first and has little time left must not make the connection fail for
// other calls.
func TestRedisImpatientCallConnectsForOthers(t *testing.T) {
	t.Parallel()
	server, r, name := startRedisWith(t)
	server.do(t, "CLIENT", "KILL", "TYPE", "normal")
	redisAwaitWake(t, r)
	patient := make(chan error, 1)
	server.pause(t, r, func() {
		impatient, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		go func() { patient <- hasObject(t.Context(), r, name, `1`) }()
		_, err := r.Get(impatient, name, Server)
		wantUnavailable(t, "Get", err)
	})
	if err := <-patient; err != nil {
		t.Error(err)
	}
}

// The server does not answer, or is not a Redis.
func TestRedisThatCannotBeReached(t *testing.T) {
	t.Parallel()
	wantNone := func(address string) {
		t.Helper()
		r, name := openRedis(t, address, newMemStorage()), named(Videos, "v")
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		_, err := r.Get(ctx, name, Server)
		wantUnavailable(t, "Get", err)
		_, err = r.Get(t.Context(), name, Server)
		wantUnavailable(t, "Get without a deadline", err)
	}
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	wantNone("redis://" + mute.Addr().String())
	wantNone("rediss://" + mute.Addr().String())
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
		wantNone("redis://" + listener.Addr().String())
	}
}

// An address without timeouts gets those of redisTimeout: a server whose queue of
// connections is full accepts no connection and refuses none.
func TestRedisTimeouts(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]time.Duration{"redis://host": redisTimeout, "redis://host?dial_timeout=5s&write_timeout=5s": 5 * time.Second} {
		o, err := parseAddress(address)
		if err != nil || o.Dialer.Timeout != want || o.ConnWriteTimeout != want || o.Dialer.KeepAlive != redisTimeout {
			t.Errorf("%s: dial %s, write %s, ping %s, %v, want %s", address, o.Dialer.Timeout, o.ConnWriteTimeout, o.Dialer.KeepAlive, err, want)
		}
	}
}

func TestRedisRestarts(t *testing.T) {
	t.Parallel()
	server, r, name := startRedisWith(t, "--appendonly", "yes", "--appendfsync", "always")
	_ = server.try("SHUTDOWN")
	<-server.exited
	_, err := r.Get(t.Context(), name, Server)
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
	server, r, name := startRedisWith(t)
	server.kill()
	down := server.open(t)
	_, err := down.Get(t.Context(), name, Server)
	wantUnavailable(t, "Get of a server that is down", err)
	wantUnavailable(t, "Update of a server that is down", tryWrite(t.Context(), down, name, `1`))
	server.start(t)
	redisEventually(t, "Redis is back", func() error {
		if _, err := r.Get(t.Context(), name, Server); err == nil || !strings.Contains(err.Error(), "lost") {
			return fmt.Errorf("error %w: want one of the loss", err)
		}
		return nil
	})
	wantAllUnavailable(t, "lost", r, name)
	redisEventually(t, "a node opens that was started before", func() error { return tryWrite(t.Context(), down, name, `1`) })
	down.Close()
	down.Close()
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
	idle, hanging, last, name := server.open(t), server.open(t), server.open(t), named(Videos, "v")
	for _, s := range []*Redis{idle, hanging, last} {
		wantObject(t, s, name, "")
	}
	redisEventually(t, "there is one connection each", connections(3))
	idle.Close()
	redisEventually(t, "one is closed", connections(2))
	server.pause(t, last, func() {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		for _, s := range []*Redis{hanging, server.open(t)} {
			_, err := s.Get(ctx, name, Server)
			wantUnavailable(t, "Get", err)
			s.Close()
		}
	})
	last.Close()
	redisEventually(t, "the others are closed", connections(0))
}

func TestRedisMayEvict(t *testing.T) {
	t.Parallel()
	for policy, want := range map[string]int{"noeviction": 0, "volatile-lru": 0, "allkeys-lru": 1} {
		r, logs := loggedRedis(t, startRedis(t, "--maxmemory-policy", policy).address(), newMemStorage())
		write(t, r, named(Videos, "v"), `1`)
		write(t, r, named(Videos, "v"), `2`)
		if got := logs.FilterMessageSnippet("noeviction").Len(); got != want {
			t.Errorf("%s: %d warnings, want %d", policy, got, want)
		}
	}
}

// Redis quotes the arguments of unknown commands, also of AUTH. No error and no log contains
// a password, or an address, which may contain one.
func TestRedisPasswordIsSecret(t *testing.T) {
	t.Parallel()
	password := "hunter2" + strings.Repeat("-and-more", 20)
	server := startRedis(t, "--requirepass", "another", "--rename-command", "AUTH", "")
	for _, address := range []string{
		"unix://:" + password + "@" + server.socket(),
		"unix://:" + password + "@" + server.socket() + "?protocol=2",
		"unix://default:" + password + "@" + server.socket() + ".none",
		"redis://:" + password + "@127.0.0.1:1/0",
		"redis://:" + password + "@host.invalid",
	} {
		r, logs := loggedRedis(t, address, newMemStorage())
		_, err := r.Get(t.Context(), named(Videos, "v"), Server)
		wantUnavailable(t, "Get", err)
		gossip := r.unavailable(fmt.Errorf("%q is not the password", password))
		if text := fmt.Sprint(err, gossip, logs.All()); strings.Contains(text, "hunter2") {
			t.Errorf("the password is shown: %s", text)
		}
	}
	for _, address := range []string{
		"", "hunter2", "http://:hunter2@host", "redis://:hunter2@host:port", "redis://:hunter2%zz@host",
		"redis://:1#hunter2@host", "redis://:1?hunter2@host", "redis://:1/hunter2@host", "redis:hunter2@host",
		"redis://host/hunter2", "redis://host?db=hunter2", "redis://host?hunter2", "unix://hunter2/socket", "unix://",
	} {
		_, err := NewRedis(address, as[certmagic.Storage](newMemStorage()), zap.NewNop, nil)
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: error %v, want one that does not quote it", address, err)
		}
	}
}

// People can read the file with the epoch. If the node cannot read it, the node uses no data.
// If the node cannot write it, the node notices a loss of data until its restart.
func TestRedisEpochFile(t *testing.T) {
	t.Parallel()
	server, local, name := startRedis(t), newMemStorage(), named(Videos, "v")
	r := openRedis(t, "unix://default:hunter2@"+server.socket(), local)
	for _, failure := range []error{fs.ErrPermission, syscall.EIO} {
		local.intercept(failOn("load", "redis", failure))
		_, err := r.Get(t.Context(), name, Server)
		wantUnavailable(t, "Get", err, failure.Error(), r.memory.key)
	}
	if n, err := server.try("DBSIZE").AsInt64(); n != 0 || err != nil {
		t.Errorf("%d keys, %v, want Redis untouched", n, err)
	}
	h := hold(local, "load", "")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := r.Get(ctx, name, Server)
	if wantUnavailable(t, "Get", err); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Get = %v, want the context's error in it", err)
	}
	server.do(t, "CONFIG", "SET", "requirepass", "hunter2")
	close(h.release)
	redisEventually(t, "the storage goes on", func() error { return hasObject(t.Context(), r, name, "") })
	local.intercept(nil)
	raw, err := local.Load(t.Context(), r.memory.key)
	if err != nil {
		t.Fatal(err)
	}
	var got remembered
	if err := json.Unmarshal(raw, &got); err != nil || got.Epoch != r.session.Load().epoch || got.Hint == "" || strings.Contains(string(raw), "hunter2") {
		t.Errorf("%s, %v: want an epoch, a hint, and no password", raw, err)
	}
	for _, content := range []string{"", "{}", "[", `{"epoch":""}`} {
		local.put(r.memory.key, []byte(content))
		_, err := openRedis(t, "unix://default:hunter2@"+server.socket(), local).Get(t.Context(), name, Server)
		wantUnavailable(t, fmt.Sprintf("%q", content), err, r.memory.key)
	}

	server, readOnly := startRedis(t), newMemStorage()
	readOnly.intercept(failOn("store", "redis", syscall.EROFS))
	r, logs := loggedRedis(t, server.address(), readOnly)
	write(t, r, name, `1`)
	if logs.Len() != 1 {
		t.Errorf("the log has %v, want one warning", logs.All())
	}
	server.do(t, "FLUSHALL")
	wantAllUnavailable(t, "lost", r, name)
}

// If several nodes are the first at the same time, none may replace the data of another.
func TestRedisFirstUseByMany(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	stores, want := make([]*Redis, 8), make(map[string]string)
	var wg sync.WaitGroup
	for i := range stores {
		stores[i], want[fmt.Sprint(i)] = server.open(t), "1"
	}
	for i, s := range stores {
		wg.Go(func() {
			if err := tryWrite(t.Context(), s, named(Videos, fmt.Sprint(i)), `1`); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, s := range stores {
		wantAll(t, s, Videos, want)
	}
}
