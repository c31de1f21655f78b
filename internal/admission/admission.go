// Package admission asks a back end of the operator whether a playback session may begin.
package admission

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/signed-playback/caddy-signed-playback/internal/queue"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
	"github.com/signed-playback/caddy-signed-playback/internal/webhook"
)

const (
	// Timeout is how long the start of a session waits for its turn and for the answer.
	Timeout = time.Second

	maxAsked   = 64   // questions at the same time
	maxWaiting = 512  // starts of sessions that wait for their turn
	maxAnswer  = 4096 // bytes
)

// Event is the member `event` of each question, which tells it from the end of a session.
const Event = "session.admission"

// Question says which session is about to begin. It has no token, URL or address.
type Question struct {
	Event     string `json:"event"`
	ID        string `json:"id"`  // of the session, as the lists of the control API have it
	UID       string `json:"uid"` // "" if the token names no viewer
	JTI       string `json:"jti"` // "" without a token, or without the claim
	Video     string `json:"video"`
	Country   string `json:"country"` // ISO 3166-1 alpha-2, "" if it is unknown
	Network   string `json:"network"` // a /24 or a /48, "" if the address is unknown
	UserAgent string `json:"userAgent"`
	Time      string `json:"time"` // RFC 3339, UTC
}

// The errors of Ask.
var (
	// ErrDenied says that the back end does not let the session begin.
	ErrDenied = errors.New("the back end of the option admission does not let the session begin")

	// ErrUnavailable says that there is no valid answer. It is wrapped with the cause.
	ErrUnavailable = errors.New("the back end of the option admission has given no answer")
)

// Result is what became of a question. It is a label of a metric.
type Result string

// The results.
const (
	Allowed  Result = "allowed"
	Denied   Result = "denied"
	TimedOut Result = "timeout" // no turn or no answer within Timeout
	Failed   Result = "failed"  // no connection, or one that broke
	Status   Result = "status"  // neither 200 nor 403
	Invalid  Result = "invalid" // a body that is no answer
	Limited  Result = "limited" // not asked: too many questions at once
)

// Results returns all results.
func Results() []Result { return []Result{Allowed, Denied, TimedOut, Failed, Status, Invalid, Limited} }

// Config says whom to ask. All but Key are required.
type Config struct {
	URL *url.URL         // as webhook.Parse returns it
	Key []byte           // of signatures, nil for none
	Now func() time.Time // what the `until` of an answer is compared with

	// Asked is told of each question, and how long the back end took.
	Asked func(Result, time.Duration)
}

// Client asks the back end. It is safe for concurrent use.
type Client struct {
	config   Config
	receiver *webhook.Receiver
	turns    *queue.Queue
}

// New returns a Client.
func New(config Config) *Client {
	return &Client{
		config: config, receiver: webhook.NewReceiver(config.URL, config.Key, maxAsked, Timeout),
		turns: queue.New(semaphore.NewWeighted(maxAsked), maxWaiting, Timeout),
	}
}

// Close closes connections that are not in use.
func (c *Client) Close() { c.receiver.Close() }

// Ask asks whether a session may begin, and returns on which terms. A client that cancels its
// request does not cancel the question.
func (c *Client) Ask(ctx context.Context, q Question) (sessions.Terms, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Timeout)
	defer cancel()
	if err := c.turns.Enter(ctx, 1); err != nil {
		c.config.Asked(Limited, 0)
		return sessions.Terms{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer c.turns.Leave(1)
	start := time.Now()
	terms, result, err := c.ask(ctx, q)
	c.config.Asked(result, time.Since(start))
	if err != nil && !errors.Is(err, ErrDenied) {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return terms, err
}

// ask posts a question once. Only 200 has an answer in its body. 403 denies the session, whatever
// its body is, as servers of forward_auth do.
func (c *Client) ask(ctx context.Context, q Question) (sessions.Terms, Result, error) {
	q.Event, q.Time = Event, c.config.Now().UTC().Format(time.RFC3339)
	body, _ := json.Marshal(q) // texts cannot fail
	status, answer, err := c.receiver.Post(ctx, body, maxAnswer+1)
	switch {
	case status == http.StatusForbidden:
		return sessions.Terms{}, Denied, ErrDenied
	case err != nil && ctx.Err() != nil:
		return sessions.Terms{}, TimedOut, fmt.Errorf("it has taken longer than %s", Timeout)
	case err != nil:
		return sessions.Terms{}, Failed, err
	case status != http.StatusOK:
		return sessions.Terms{}, Status, fmt.Errorf("it has answered with the status %d; want 200 or 403", status)
	}
	allow, terms, err := parse(answer)
	switch {
	case err != nil:
		return sessions.Terms{}, Invalid, err
	case !allow || !terms.Until.IsZero() && !c.config.Now().Before(terms.Until):
		return sessions.Terms{}, Denied, ErrDenied
	}
	return terms, Allowed, nil
}

// parse reads an answer. An unknown member is an error, because it may be a limit that is
// misspelt, unless the session is denied anyway.
func parse(body []byte) (allow bool, terms sessions.Terms, err error) {
	if len(body) > maxAnswer {
		return false, terms, fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
	}
	doc, err := strictjson.Parse(body, maxAnswer)
	if err != nil || !doc.IsObject() {
		return false, terms, errors.New(`the answer is no JSON object like {"allow": true}`)
	}
	err = errors.New("the answer has no member allow")
	var wrong error
	for name, value := range doc.Members() {
		var n int64
		valid := true
		switch string(name) {
		case "allow":
			if allow, valid = value.Bool(); valid {
				err = nil
			}
		case "climit":
			n, valid = number(value, 1<<31-1)
			terms.Limit = int(n)
		case "until":
			if n, valid = number(value, 1<<53-1); n > 0 {
				terms.Until = time.Unix(n, 0)
			}
		default:
			wrong = fmt.Errorf("the answer has an unknown member %.40q; known are allow, climit, until", name)
		}
		if !valid {
			wrong = fmt.Errorf("the member %s of the answer is not valid: want true or false for allow, and whole numbers from 1 on for climit and until", name)
		}
	}
	if err != nil || allow && wrong != nil {
		return false, sessions.Terms{}, cmp.Or(wrong, err)
	}
	return allow, terms, nil
}

// number reads a whole number from 1 on. null is 0, as is a member that is not there.
func number(v strictjson.Value, most int64) (n int64, ok bool) {
	if string(v.Raw()) == "null" {
		return 0, true
	}
	n, err := strconv.ParseInt(string(v.Raw()), 10, 64)
	return n, err == nil && n >= 1 && n <= most
}
