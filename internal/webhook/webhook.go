// Package webhook posts events to a URL of the operator, in the background: a receiver that is
// slow or away delays nothing and takes no more memory than a bounded queue.
package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// SignatureHeader has the time in Unix seconds and the signature of an event, in
	// the form of Cloudflare Stream's webhooks: time=<seconds>,sig1=<hexadecimal digits>.
	// The signature is HMAC-SHA256 over the time, a full stop and the body.
	SignatureHeader = "Webhook-Signature"

	maxQueued   = 1000 // events that wait
	senders     = 4    // events that are sent at the same time
	attempts    = 6    // of an event, in about half a minute
	callTimeout = 5 * time.Second

	// closeTimeout is how long the end of the server waits for events that are left.
	closeTimeout = 5 * time.Second
)

// Config says where events go. Logger and Drop are required.
type Config struct {
	URL    *url.URL // as Parse returns it
	Key    []byte   // of signatures; nil for none
	Logger func() *zap.Logger
	Drop   func() // counts an event that is given up

	// Pause returns how long to wait before a further attempt, 1 for the first. Default:
	// a second, and twice as long each time.
	Pause func(attempt int) time.Duration
}

// Webhook posts events. It is safe for concurrent use.
type Webhook struct {
	Config
	client *http.Client
	queue  chan []byte
	done   sync.WaitGroup
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.RWMutex
	closed bool
}

// Parse checks a URL: https, or http to a loopback address, because events name viewers. It
// may be in a private network, which is the operator's choice. Its user, password, path and
// query may be secret, so errors do not quote them.
func Parse(address string, isLoopback func(host string) bool) (*url.URL, error) {
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "" || u.Fragment != "" || u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("want an https URL, like https://hooks.example.com/playback")
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		return nil, fmt.Errorf("http to %q: others on the network could read who watches; want https, or http to a loopback address", u.Hostname())
	}
	return u, nil
}

// New returns a Webhook that sends until Close.
func New(config Config) *Webhook {
	if config.Pause == nil {
		config.Pause = func(attempt int) time.Duration { return time.Second << (attempt - 1) }
	}
	w := &Webhook{Config: config, queue: make(chan []byte, maxQueued), client: &http.Client{
		Timeout: callTimeout,
		// The receiver of a redirect is none that the operator has named.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	for range senders {
		w.done.Go(func() {
			for event := range w.queue {
				w.deliver(event)
			}
		})
	}
	return w
}

// Send puts an event, a JSON object, into the queue, or drops it if that is full.
func (w *Webhook) Send(event []byte) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.closed {
		w.Drop()
		return
	}
	select {
	case w.queue <- event:
	default:
		w.Drop()
	}
}

// Close sends what is left, for five seconds at most, and gives up the rest.
func (w *Webhook) Close() {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return
	}
	w.closed = true
	close(w.queue)
	w.mu.Unlock()
	stop := time.AfterFunc(closeTimeout, w.cancel)
	defer stop.Stop()
	w.done.Wait()
	w.cancel()
}

// deliver posts an event until the receiver has taken or refused it.
func (w *Webhook) deliver(event []byte) {
	for attempt := 1; ; attempt++ {
		again, err := w.post(event)
		if err == nil {
			return
		}
		if again = again && attempt < attempts && w.ctx.Err() == nil; again {
			select {
			case <-time.After(w.Pause(attempt)):
				continue
			case <-w.ctx.Done():
			}
		}
		w.Drop()
		w.Logger().Warn("an event was not delivered", zap.String("host", w.URL.Host), zap.Int("attempts", attempt), zap.Error(err))
		return
	}
}

// post posts an event once. again says whether it is worth another attempt.
func (w *Webhook) post(event []byte) (again bool, err error) {
	r, err := http.NewRequestWithContext(w.ctx, http.MethodPost, w.URL.String(), bytes.NewReader(event))
	if err != nil {
		return false, errors.New("the URL is not one of a request")
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "signed-playback")
	if w.Key != nil {
		r.Header.Set(SignatureHeader, Sign(w.Key, time.Now(), event))
	}
	response, err := w.client.Do(r)
	if err != nil {
		if failed, ok := errors.AsType[*url.Error](err); ok {
			err = failed.Err // without the URL
		}
		return true, err
	}
	defer response.Body.Close()
	_, _ = io.CopyN(io.Discard, response.Body, 64<<10) // so that the connection can be used again
	if response.StatusCode/100 == 2 {
		return false, nil
	}
	again = response.StatusCode >= 500 || response.StatusCode == http.StatusRequestTimeout || response.StatusCode == http.StatusTooManyRequests
	return again, fmt.Errorf("the receiver answers %d", response.StatusCode)
}

// Sign returns the value of SignatureHeader for an event.
func Sign(key []byte, at time.Time, event []byte) string {
	seconds := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(seconds + "."))
	mac.Write(event)
	return "time=" + seconds + ",sig1=" + hex.EncodeToString(mac.Sum(nil))
}
