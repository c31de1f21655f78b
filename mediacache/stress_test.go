package mediacache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// versioned returns a body that can be recognized: it begins with the name and the
// version of an object, and the rest follows from these.
func versioned(path string, version uint64, size int) []byte {
	b := make([]byte, max(size, 40))
	sum := sha256.Sum256([]byte(path))
	copy(b, sum[:])
	binary.BigEndian.PutUint64(b[32:], version)
	copy(b[40:], randomBytes(binary.BigEndian.Uint64(sum[:])+version, len(b)-40))
	return b
}

// faultyOrigin answers with versions that change all the time, and with every kind of
// fault.
func faultyOrigin(version *atomic.Uint64) Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		dice := rand.IntN(24)
		v := version.Load()
		size := int(crc(r.URL.Path)) % (2 << 20) >> rand.New(rand.NewPCG(uint64(crc(r.URL.Path)), 7)).IntN(12)
		body := versioned(r.URL.Path, v, size)
		h := w.Header()
		h.Set("Content-Type", "video/mp4")
		h.Set("ETag", fmt.Sprintf(`"%d"`, v))
		h.Set("Cache-Control", []string{"max-age=1", "max-age=0", "no-cache", "max-age=1, stale-while-revalidate=5", "max-age=1, stale-if-error=5", "no-store", ""}[rand.IntN(7)])
		switch dice {
		case 0:
			panic(http.ErrAbortHandler)
		case 1:
			w.WriteHeader(http.StatusInternalServerError)
			return nil
		case 2:
			http.NotFound(w, r)
			return nil
		case 3:
			h.Set("Content-Length", strconv.Itoa(len(body)))
			w.Write(body[:rand.IntN(len(body))])
			panic(http.ErrAbortHandler)
		case 4:
			w.Write(body[:len(body)/2])
			<-time.After(time.Duration(rand.IntN(20)) * time.Millisecond)
			_, err := w.Write(body[len(body)/2:])
			return err
		case 5: // without a length
			_, err := w.Write(body)
			return err
		case 6: // broken off, without a length
			w.Write(body[:len(body)/2])
			panic(http.ErrAbortHandler)
		case 7:
			h.Set("Vary", "Cookie")
		case 8:
			<-time.After(time.Duration(rand.IntN(50)) * time.Millisecond)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
		return nil
	}
}

func crc(path string) uint32 {
	sum := sha256.Sum256([]byte(path))
	return binary.BigEndian.Uint32(sum[:])
}

// TestNoWrongBytes has viewers ask for objects at random, while the origin fails in
// every way and memory is short. Whatever a viewer takes for a complete answer must be the bytes of one version of what they asked for.
func TestNoWrongBytes(t *testing.T) {
	t.Parallel()
	var version atomic.Uint64
	s := newScene(faultyOrigin(&version), func(c *Config) { c.Memory, c.MaxObject = 6<<20, 1<<20 })
	var group sync.WaitGroup
	for viewer := range 8 {
		group.Go(func() {
			random := rand.New(rand.NewPCG(uint64(viewer), 3))
			for range 60 {
				path := fmt.Sprintf("/v%d/s%d.m4s", random.IntN(3), random.IntN(12))
				if err := s.visitAtRandom(path, random); err != nil {
					t.Errorf("%s: %v", path, err)
				}
				switch random.IntN(40) {
				case 0, 1:
					s.advance(time.Second)
				case 2, 3, 4:
					version.Add(1)
				}
			}
		})
	}
	group.Wait()
	s.checkMemory(t)
}

// leaver is a viewer who leaves after so many bytes.
type leaver struct {
	http.ResponseWriter
	left  int
	leave context.CancelFunc
}

func (l *leaver) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		l.leave()
		return 0, errors.New("the viewer has left")
	}
	return l.ResponseWriter.Write(p)
}

// visitAtRandom makes a request and checks its answer, if that is not broken off.
func (s *scene) visitAtRandom(path string, random *rand.Rand) error {
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	r, w := httptest.NewRequestWithContext(ctx, "GET", path, nil), httptest.NewRecorder()
	from := random.IntN(2 << 20)
	switch random.IntN(4) {
	case 0:
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, from+random.IntN(1<<20)))
	case 1:
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	}
	viewer := &leaver{w, 1 << 30, leave}
	if random.IntN(10) == 0 {
		viewer.left = random.IntN(1 << 19)
	}
	if s.visit(viewer, r) != nil || ctx.Err() != nil {
		return nil
	}
	version, _ := strconv.ParseUint(strings.Trim(w.Header().Get("ETag"), `"`), 10, 64)
	switch w.Code {
	case http.StatusOK, http.StatusPartialContent:
	case http.StatusNotFound, http.StatusInternalServerError, http.StatusRequestedRangeNotSatisfiable:
		return nil
	default:
		return fmt.Errorf("status %d", w.Code)
	}
	size := int(crc(path)) % (2 << 20) >> rand.New(rand.NewPCG(uint64(crc(path)), 7)).IntN(12)
	want := versioned(path, version, size)
	if w.Code == http.StatusPartialContent {
		var part span
		_, err := fmt.Sscanf(w.Header().Get("Content-Range"), "bytes %d-%d/%d", &part.first, &part.last, &part.total)
		if err != nil || part.total != int64(len(want)) || part.first != int64(from) {
			return fmt.Errorf("Content-Range %q for %q", w.Header().Get("Content-Range"), r.Header.Get("Range"))
		}
		want = want[part.first : part.last+1]
	}
	if !bytes.Equal(w.Body.Bytes(), want) {
		return fmt.Errorf("status %d, %s, %s: %d wrong bytes of %d", w.Code, r.Header.Get("Range"), w.Header().Get("Cache-Status"), w.Body.Len(), len(want))
	}
	return nil
}
