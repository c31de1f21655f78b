package mediacache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
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
func faultyOrigin(version *atomic.Uint64) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		dice := rand.IntN(24)
		v := version.Load()
		size := int(crc(r.URL.Path)) % (2 << 20) >> rand.New(rand.NewPCG(uint64(crc(r.URL.Path)), 7)).IntN(12)
		body := versioned(r.URL.Path, v, size)
		h := w.Header()
		h["Date"] = nil
		h.Set("Content-Type", "video/mp4")
		h.Set("ETag", fmt.Sprintf(`"%d"`, v))
		h.Set("Cache-Control", []string{"max-age=1", "max-age=0", "no-cache", "max-age=1, stale-while-revalidate=5", "max-age=1, stale-if-error=5", "no-store", ""}[rand.IntN(7)])
		switch dice {
		case 0:
			panic(http.ErrAbortHandler)
		case 1:
			w.WriteHeader(http.StatusInternalServerError)
			return
		case 2:
			http.NotFound(w, r)
			return
		case 3:
			h.Set("Content-Length", strconv.Itoa(len(body)))
			w.Write(body[:rand.IntN(len(body))])
			panic(http.ErrAbortHandler)
		case 4:
			w.Write(body[:len(body)/2])
			w.(http.Flusher).Flush()
			<-time.After(time.Duration(rand.IntN(20)) * time.Millisecond)
			w.Write(body[len(body)/2:])
			return
		case 5: // without a length
			w.(http.Flusher).Flush()
			w.Write(body)
			return
		case 6: // broken off, without a length
			w.Write(body[:len(body)/2])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case 7:
			h.Set("Vary", "Cookie")
		case 8:
			<-time.After(time.Duration(rand.IntN(50)) * time.Millisecond)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
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
	s := newServer(t, faultyOrigin(&version), func(c *Config) { c.Memory, c.MaxObject = 6<<20, 1<<20 })
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
					s.clock.Add(1)
				case 2, 3, 4:
					version.Add(1)
				}
			}
		})
	}
	group.Wait()
	s.checkMemory(t)
}

// visitAtRandom makes a request and checks its answer.
func (s *server) visitAtRandom(path string, random *rand.Rand) error {
	r, err := http.NewRequest(http.MethodGet, s.URL+path, nil)
	if err != nil {
		return err
	}
	from := random.IntN(2 << 20)
	switch random.IntN(4) {
	case 0:
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, from+random.IntN(1<<20)))
	case 1:
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	}
	response, err := s.Client().Transport.RoundTrip(r)
	if err != nil {
		return nil // broken off
	}
	defer response.Body.Close()
	if random.IntN(10) == 0 {
		io.CopyN(io.Discard, response.Body, int64(random.IntN(1<<19)))
		return nil // the viewer leaves
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil // broken off
	}
	etag := response.Header.Get("ETag")
	version, _ := strconv.ParseUint(etag[min(len(etag), 1):max(len(etag)-1, min(len(etag), 1))], 10, 64)
	switch response.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
	case http.StatusNotFound, http.StatusInternalServerError, http.StatusBadGateway, http.StatusRequestedRangeNotSatisfiable:
		return nil
	default:
		return fmt.Errorf("status %d", response.StatusCode)
	}
	size := int(crc(path)) % (2 << 20) >> rand.New(rand.NewPCG(uint64(crc(path)), 7)).IntN(12)
	want := versioned(path, version, size)
	if response.StatusCode == http.StatusPartialContent {
		var part span
		_, err := fmt.Sscanf(response.Header.Get("Content-Range"), "bytes %d-%d/%d", &part.first, &part.last, &part.total)
		if err != nil || part.total != int64(len(want)) || part.first != int64(from) {
			return fmt.Errorf("Content-Range %q for %q", response.Header.Get("Content-Range"), r.Header.Get("Range"))
		}
		want = want[part.first : part.last+1]
	}
	if !bytes.Equal(body, want) {
		return fmt.Errorf("status %d, %s, %s: %d wrong bytes of %d", response.StatusCode, r.Header.Get("Range"), response.Header.Get("Cache-Status"), len(body), len(want))
	}
	return nil
}
