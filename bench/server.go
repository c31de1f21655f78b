package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// server is a running process, perhaps with children in its process group.
type server struct {
	title   string
	address string // host:port
	secure  string // the same for TLS
	metrics string // host:port
	log     string // the file of its output
	cmd     *exec.Cmd
	exited  chan struct{}
}

// start runs a setup in a folder of its own and returns once it serves.
func (b *bench) start(ctx context.Context, s *setup) (*server, error) {
	dir := filepath.Join(b.dir, s.name)
	f, err := b.write(s, dir)
	if err != nil {
		return nil, err
	}
	argv := b.argv(s, f)
	srv := &server{
		title: s.title, address: "127.0.0.1:" + f.Port, secure: "127.0.0.1:" + f.TLSPort, metrics: "127.0.0.1:" + f.MetricsPort,
		log:    filepath.Join(dir, "output"),
		cmd:    exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...), //nolint:gosec // the commands are in this package
		exited: make(chan struct{}),
	}
	output, err := os.Create(srv.log)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	srv.cmd.Dir, srv.cmd.Stdout, srv.cmd.Stderr = dir, output, output
	srv.cmd.Env = append(os.Environ(), "GOMAXPROCS="+strconv.Itoa(threads), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	srv.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := srv.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", s.title, err)
	}
	go func() {
		defer close(srv.exited)
		_ = srv.cmd.Wait() // the log says why it ended
	}()
	if err := srv.awaitPort(ctx); err != nil {
		return nil, srv.explain(errors.Join(err, srv.stop()))
	}
	return srv, nil
}

// awaitPort waits until the server accepts connections.
func (s *server) awaitPort(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", s.address)
		if err == nil {
			return c.Close()
		}
		select {
		case <-retry.C:
		case <-s.exited:
			return errors.New("it has exited")
		case <-ctx.Done():
			return fmt.Errorf("it accepts no connections: %w", err)
		}
	}
}

func (s *server) url(p protocol) string {
	if p.tls {
		return "https://" + s.secure
	}
	return "http://" + s.address
}

// usage is what the server and its children have used so far.
func (s *server) usage() (usage, error) {
	u, err := groupUsage(int64(s.cmd.Process.Pid))
	return u, s.explain(err)
}

// explain adds the end of the server's output to an error.
func (s *server) explain(err error) error {
	if err == nil {
		return nil
	}
	const most = 4096
	output, _ := os.ReadFile(s.log) // without it, err has to do
	return fmt.Errorf("%s: %w\n%s", s.title, err, output[max(0, len(output)-most):])
}

// stop ends the server and its children.
func (s *server) stop() error {
	group := -s.cmd.Process.Pid
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // unless it has ended
	timeout := time.NewTimer(10 * time.Second)
	defer timeout.Stop()
	var err error
	select {
	case <-s.exited:
	case <-timeout.C:
		err = fmt.Errorf("%s ignores SIGTERM", s.title)
	}
	_ = syscall.Kill(group, syscall.SIGKILL) // unless all have ended
	return err
}
