// Package webhook posts signed JSON to a URL of the operator. Events are posted in the
// background: a receiver that is slow or away delays nothing and takes no more memory than a
// bounded queue.
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
	"net"
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
	Key    []byte   // of signatures, nil for none
	Logger func() *zap.Logger
	Drop   func() // counts an event that is given up

	// Pause returns how long to wait before a further attempt, 1 for the first. Default:
	// a second, and twice as long each time.
	Pause func(attempt int) time.Duration
}

// Webhook posts events. It is safe for concurrent use.
type Webhook struct {
	Config
	receiver *Receiver
	queue    chan []byte
	done     sync.WaitGroup
	ctx      context.Context
	cancel   context.CancelFunc

	mu     sync.RWMutex
	closed bool
}

// Parse checks the form of a URL. It may be in a private network, which is the operator's
// choice. Its user, password, path and query may be secret, so errors do not quote them.
func Parse(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Hostname() == "" || u.Fragment != "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("want an https URL, like https://hooks.example.com/playback")
	}
	return u, nil
}

// ParsePrivate also refuses a URL that IsExposed.
func ParsePrivate(address string, isLoopback func(host string) bool) (*url.URL, error) {
	u, err := Parse(address)
	if err == nil && IsExposed(u, isLoopback) {
		return nil, fmt.Errorf("http to %q: others on the network could read who watches; want https, or http to a loopback address", u.Hostname())
	}
	return u, err
}

// IsExposed reports whether others on the network can read and change what is posted and
// answered: with http, except to this machine.
func IsExposed(u *url.URL, isLoopback func(host string) bool) bool {
	return u.Scheme == "http" && !isLoopback(u.Hostname())
}

// Receiver is a URL of the operator that answers what is posted to it. It is safe for concurrent
// use.
type Receiver struct {
	url    *url.URL
	key    []byte
	client *http.Client
}

// NewReceiver returns a Receiver with a URL that Parse has returned and a key of signatures, nil
// for none. It has so many connections at most, and none takes longer to be made than timeout.
func NewReceiver(u *url.URL, key []byte, connections int, timeout time.Duration) *Receiver {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = (&net.Dialer{Timeout: timeout}).DialContext
	transport.MaxConnsPerHost, transport.MaxIdleConnsPerHost = connections, connections
	transport.MaxResponseHeaderBytes, transport.DisableCompression = maxHeader, true
	return &Receiver{u, key, &http.Client{
		Transport: transport,
		// The receiver of a redirect is none that the operator has named.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

const maxHeader = 64 << 10

// Post posts a JSON object, and returns the status of the answer and the beginning of its body,
// most bytes at most. Its errors do not contain the URL. If a connection breaks before there is
// an answer, the receiver may get the object twice.
func (r *Receiver) Post(ctx context.Context, object []byte, most int64) (status int, body []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url.String(), bytes.NewReader(object))
	if err != nil {
		return 0, nil, errors.New("the URL is not one of a request")
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "signed-playback")
	// It is not sent, and has the client send the request again on a new connection if the
	// receiver has closed an idle one.
	request.Header["Idempotency-Key"] = nil
	if r.key != nil {
		request.Header.Set(SignatureHeader, Sign(r.key, time.Now(), object))
	}
	response, err := r.client.Do(request)
	if err != nil {
		if failed, ok := errors.AsType[*url.Error](err); ok {
			err = failed.Err // without the URL
		}
		return 0, nil, err
	}
	defer response.Body.Close()
	body, err = io.ReadAll(io.LimitReader(response.Body, most))
	return response.StatusCode, body, err
}

// Close closes connections that are not in use.
func (r *Receiver) Close() { r.client.CloseIdleConnections() }

// New returns a Webhook that sends until Close.
func New(config Config) *Webhook {
	if config.Pause == nil {
		config.Pause = func(attempt int) time.Duration { return time.Second << (attempt - 1) }
	}
	w := &Webhook{Config: config, queue: make(chan []byte, maxQueued), receiver: NewReceiver(config.URL, config.Key, senders, callTimeout)}
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
	if !w.closed {
		w.closed = true
		close(w.queue)
	}
	w.mu.Unlock()
	stop := time.AfterFunc(closeTimeout, w.cancel)
	defer stop.Stop()
	w.done.Wait()
	w.cancel()
	w.receiver.Close()
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
	ctx, cancel := context.WithTimeout(w.ctx, callTimeout)
	defer cancel()
	const ignored = 64 << 10 // bytes of the answer that are read, so that the connection can be used again
	status, _, err := w.receiver.Post(ctx, event, ignored)
	switch {
	case status == 0:
		return true, err
	case status/100 == 2:
		return false, nil
	}
	again = status >= 500 || status == http.StatusRequestTimeout || status == http.StatusTooManyRequests
	return again, fmt.Errorf("the receiver answers %d", status)
}

// Sign returns the value of SignatureHeader for an event.
func Sign(key []byte, at time.Time, event []byte) string {
	seconds := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(seconds + "."))
	mac.Write(event)
	return "time=" + seconds + ",sig1=" + hex.EncodeToString(mac.Sum(nil))
}
