package recordconn

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// connected returns both ends of a TCP connection.
func connected(t *testing.T) (server *conn, client *net.TCPConn) {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	client = must(net.Dial("tcp", l.Addr().String())).(*net.TCPConn)
	accepted := must((&listener{Listener: l}).Accept())
	t.Cleanup(func() { client.Close(); accepted.Close() })
	return accepted.(*conn), client
}

// proxied is like a connection of proxy_protocol.
type proxied struct{ net.Conn }

func (p proxied) Raw() net.Conn { return p.Conn }

// The connection below TLS is found, also below proxy_protocol.
func TestRecordConnIsFound(t *testing.T) {
	t.Parallel()
	server, client := connected(t)
	for name, tc := range map[string]struct {
		below net.Conn
		want  any
	}{
		"TLS":                       {server, server},
		"TLS after proxy_protocol":  {proxied{server}, server},
		"without the wrapper":       {client, nil},
		"the wrapper after another": {proxied{client}, nil},
	} {
		if got := WithConn(t.Context(), tls.Server(tc.below, nil)).Value(connKey{}); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	for name, c := range map[string]net.Conn{"HTTP": server, "HTTP after proxy_protocol": proxied{server}} {
		if got := WithConn(t.Context(), c).Value(connKey{}); got != server {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Not parallel: the number of connections that gather is of the process.
func TestWritesAreGathered(t *testing.T) {
	for name, tc := range map[string]struct {
		sizes   []int
		pending int // after the last write
	}{
		"records of TLS":             {[]int{1, 16 << 10, maxRecord, 16<<10 - 1, 16 << 10, 5}, 5},
		"a header and a body":        {[]int{4 << 10, 1 << 20, 5}, 0},
		"a body after its header":    {[]int{maxRecord + 1, 5}, 0},
		"a header, and then its end": {[]int{400, 1}, 401},
	} {
		server, client := connected(t)
		got := make(chan []byte)
		go func() { got <- must(io.ReadAll(client)) }()
		var want []byte
		for _, gathers := range []bool{true, false, true} {
			if gathers {
				server.gather()
			}
			for i, size := range tc.sizes {
				p := bytes.Repeat([]byte{byte(i + 1)}, size)
				want = append(want, p...)
				if n, err := server.Write(p); n != size || err != nil {
					t.Fatalf("%s: %d bytes of %d: %v", name, n, size, err)
				}
				clear(p) // TLS uses the memory of a record again
			}
			if want := tc.pending; gathers && server.pending != want || !gathers && server.pending != 0 {
				t.Errorf("%s: %d bytes are pending after the last write, want %d where writes are gathered", name, server.pending, want)
			}
			if err := server.send(); err != nil {
				t.Fatal(name, err)
			}
		}
		server.CloseWrite()
		if !bytes.Equal(<-got, want) {
			t.Error(name, "wrong bytes")
		}
		if n := nowGathering.Load(); n != 0 {
			t.Errorf("%s: %d connections gather after the last has sent", name, n)
		}
	}
}

// ReadFrom sends pending bytes before the bytes that it copies.
func TestReadFromSendsWhatIsPending(t *testing.T) {
	server, client := connected(t)
	server.gather()
	if _, err := server.Write([]byte("header, ")); err != nil {
		t.Fatal(err)
	}
	if n, err := server.ReadFrom(strings.NewReader("body")); n != 4 || err != nil {
		t.Error(n, err)
	}
	if err := server.send(); err != nil || nowGathering.Load() != 0 {
		t.Error(err, nowGathering.Load())
	}
	server.CloseWrite()
	if got := must(io.ReadAll(client)); string(got) != "header, body" {
		t.Errorf("got %q", got)
	}
}

// The attack of clients that do not read: they take neither more than the bounded number of
// buffers, nor one for longer than a write takes.
func TestBuffersOfRecordsAreBounded(t *testing.T) {
	server, client := connected(t)
	nowGathering.Add(maxGathering)
	server.gather()
	if _, err := server.Write([]byte("at once")); err != nil || server.pending > 0 {
		t.Errorf("%d bytes are pending without a buffer, %v", server.pending, err)
	}
	if err := server.send(); err != nil {
		t.Error(err)
	}
	if n := nowGathering.Add(-maxGathering); n != 0 {
		t.Errorf("%d connections gather", n)
	}

	server.SetWriteDeadline(time.Now().Add(2 * slowClient))
	server.gather()
	var err error
	for n := 0; err == nil && n < 64<<20; n += 16 << 10 {
		_, err = server.Write(make([]byte, 16<<10))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a write to a client that does not read: %v", err)
	}
	if n := nowGathering.Load(); n != 0 || server.buffer != nil {
		t.Errorf("%d connections gather after a slow write", n)
	}
	server.gather()
	client.Close()
	_, _ = server.Write([]byte("lost"))
	if err := server.send(); err == nil {
		t.Error("the failure of the last write is not told")
	}
	if n := nowGathering.Load(); n != 0 {
		t.Errorf("%d connections gather after a failure", n)
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}
