package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	startTimeout = 30 * time.Second
	stopTimeout  = 10 * time.Second
)

// server is a running process, perhaps with children.
type server struct {
	title   string
	port    string
	metrics string // host:port
	cmd     *exec.Cmd
	log     *logWatch
	exited  chan struct{}
}

// start runs a setup in a folder of its own and returns once it serves.
func (b *bench) start(ctx context.Context, s *setup) (*server, error) {
	dir := filepath.Join(b.dir, s.name)
	f, err := b.write(s, dir)
	if err != nil {
		return nil, err
	}
	argv := b.fill(s.command, dir)
	srv := &server{
		title: s.title, port: f.Port, metrics: net.JoinHostPort("127.0.0.1", f.MetricsPort),
		cmd:    exec.Command(argv[0], argv[1:]...), //nolint:gosec // the commands are in this package
		log:    newLogWatch(s.ready),
		exited: make(chan struct{}),
	}
	srv.cmd.Dir = dir
	srv.cmd.Env = append(os.Environ(), b.fill(s.env, dir)...)
	srv.cmd.Stdout, srv.cmd.Stderr = srv.log, srv.log
	srv.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	srv.cmd.WaitDelay = stopTimeout
	if err := srv.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", s.title, err)
	}
	go func() {
		defer close(srv.exited)
		_ = srv.cmd.Wait() // why it ended, the log says
	}()
	timeout := time.NewTimer(startTimeout)
	defer timeout.Stop()
	select {
	case <-srv.log.ready:
		return srv, nil
	case <-srv.exited:
		return nil, fmt.Errorf("%s has ended at once:\n%s", s.title, srv.log)
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), srv.stop())
	case <-timeout.C:
		return nil, errors.Join(fmt.Errorf("%s does not say %q:\n%s", s.title, s.ready, srv.log), srv.stop())
	}
}

func (s *server) addr() string { return net.JoinHostPort("127.0.0.1", s.port) }

// usage is what the server and its children have used so far.
func (s *server) usage() (usage, error) {
	u, err := treeUsage(s.cmd.Process.Pid)
	if err != nil {
		err = fmt.Errorf("%s has ended: %w\n%s", s.title, err, s.log)
	}
	return u, err
}

// stop ends the server and what it has started.
func (s *server) stop() error {
	group := -s.cmd.Process.Pid
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // unless it has ended
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	select {
	case <-s.exited:
		_ = syscall.Kill(group, syscall.SIGKILL) // children that outlived it
		return nil
	case <-timeout.C:
		err := fmt.Errorf("%s had to be killed", s.title)
		return errors.Join(err, syscall.Kill(group, syscall.SIGKILL))
	}
}

// logWatch keeps what a server prints, and says when it has printed a certain
// text.
type logWatch struct {
	ready chan struct{}

	mu     sync.Mutex
	marker []byte
	seen   bool
	text   []byte
}

// maxLog is how much is kept.
const maxLog = 1 << 20

func newLogWatch(marker string) *logWatch {
	return &logWatch{ready: make(chan struct{}), marker: []byte(marker)}
}

// Write implements io.Writer.
func (l *logWatch) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.text) < maxLog {
		l.text = append(l.text, p...)
	}
	if !l.seen && bytes.Contains(l.text, l.marker) {
		l.seen = true
		close(l.ready)
	}
	return len(p), nil
}

// String returns the end of the log.
func (l *logWatch) String() string {
	const most = 4096
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text[max(0, len(l.text)-most):])
}
