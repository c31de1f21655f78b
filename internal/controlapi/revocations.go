package controlapi

import (
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
	"github.com/signed-playback/caddy-signed-playback/token"
)

const (
	// createRevocationsRoute is the call whose body may be an array.
	createRevocationsRoute = "revocations.create"
	maxBulkBytes           = 1 << 20

	maxReason = 256          // bytes
	maxDate   = 253402300799 // the last second of the year 9999
)

type createdRevocation struct {
	ID string `json:"id"`
}

// listedRevocation is an element of the list of revocations, in the form in which it was
// made.
type listedRevocation struct {
	ID           string `json:"id"`
	Token        string `json:"token,omitempty"` // its SHA-256
	JTI          string `json:"jti,omitempty"`
	UID          string `json:"uid,omitempty"`
	Video        string `json:"video,omitempty"`
	Session      string `json:"session,omitempty"`
	IssuedBefore int64  `json:"issuedBefore,omitempty"`
	Expires      int64  `json:"expires"`
	Reason       string `json:"reason,omitempty"`
	Created      string `json:"created"`
}

// createRevocations makes one revocation, or all of an array. If one is invalid, it makes none.
func (c *call) createRevocations(body strictjson.Value) (any, error) {
	if !body.IsArray() {
		one, err := c.parseRevocation(body)
		if err == nil {
			err = c.refuseAll([]*state.Revocation{one})
		}
		if err != nil {
			return nil, err
		}
		c.subject = one.ID
		return createdRevocation{one.ID}, nil
	}
	if n := body.Count(); n > state.MaxInCall {
		return nil, badRequest("the array has %d revocations: want at most %d in a call", n, state.MaxInCall)
	}
	var list []*state.Revocation
	for element := range body.Elements() {
		one, err := c.parseRevocation(element)
		if err != nil {
			return nil, badRequest("revocation %d of the array: %v", len(list)+1, err)
		}
		list = append(list, one)
	}
	if err := c.refuseAll(list); err != nil {
		return nil, err
	}
	c.changed = append(c.changed, zap.Int("revocations", len(list)))
	created := make([]createdRevocation, len(list))
	for i, one := range list {
		created[i].ID = one.ID
	}
	return created, nil
}

// refuseAll makes revocations. Those of sessions end them at once, which makes room for others of the
// viewer.
func (c *call) refuseAll(list []*state.Revocation) error {
	if err := c.State.Refuse(c.ctx(), list); err != nil {
		return err
	}
	var ended []sessions.ID
	for _, one := range list {
		if id, err := sessions.ParseID(one.Value); err == nil && one.Selector == state.SelectSession {
			ended = append(ended, id)
		}
	}
	if c.Sessions != nil && len(ended) > 0 {
		_ = c.Sessions.End(c.ctx(), ended...) // while Redis is away, each node does it when it hears of the revocation
	}
	return nil
}

// parseRevocation reads one revocation. No error has a token.
func (c *call) parseRevocation(v strictjson.Value) (*state.Revocation, error) {
	if !v.IsObject() {
		return nil, badRequest("want an object with token, jti, uid, video or session")
	}
	r, selectors, expires := new(state.Revocation), 0, time.Time{}
	selector := func(s state.Selector, valid func(string) error) func(strictjson.Value) error {
		return func(v strictjson.Value) error {
			selectors++
			r.Selector = s
			text, ok := v.Text()
			if r.Value = text; !ok || text == "" {
				return badRequest("%s is not a string, or is empty", s)
			}
			return valid(text)
		}
	}
	err := members{
		"token": selector(state.SelectToken, func(text string) error {
			parsed, err := c.Policy.Parse(text)
			if err != nil {
				return badRequest("token: %v", err)
			}
			r.Value, expires = state.DigestOfToken(text), parsed.Unverified().ExpiresAt
			return nil
		}),
		"jti": selector(state.SelectJTI, checkIdentifier("jti")),
		"uid": selector(state.SelectViewer, checkIdentifier("uid")),
		"video": selector(state.SelectVideo, func(text string) error {
			if !token.ValidVideoID(text) {
				return badRequest("video is %.80q: want a video id, 1 to 64 of A-Z a-z 0-9 _ -", text)
			}
			return nil
		}),
		"session": selector(state.SelectSession, func(text string) error {
			if _, err := sessions.ParseID(text); err != nil {
				return badRequest("session is %.80q: want the id of the lists of sessions, 32 hexadecimal digits", text)
			}
			return nil
		}),
		"issuedBefore": secondsMember("issuedBefore", &r.IssuedBefore),
		"expires":      secondsMember("expires", &r.Expires),
		"reason": member("reason", &r.Reason, func(v strictjson.Value) (string, bool) {
			text, ok := v.Text()
			return text, ok && len(text) <= maxReason
		}, "a string of at most "+strconv.Itoa(maxReason)+" bytes"),
	}.read(v)
	switch {
	case err != nil:
		return nil, err
	case selectors != 1:
		return nil, badRequest("%d of token, jti, uid, video and session are given: want exactly one", selectors)
	case r.Selector == state.SelectSession && r.IssuedBefore != 0:
		return nil, badRequest("issuedBefore is about the tokens of a jti, a uid or a video; a session has none")
	}
	return r, c.setRevocationDates(r, expires)
}

func checkIdentifier(name string) func(string) error {
	return func(text string) error {
		if len(text) > token.MaxIdentifier {
			return badRequest("%s has %d bytes: want at most %d", name, len(text), token.MaxIdentifier)
		}
		return nil
	}
}

// secondsMember reads Unix seconds.
func secondsMember(name string, into *int64) func(strictjson.Value) error {
	return member(name, into, func(v strictjson.Value) (int64, bool) {
		seconds, err := strconv.ParseInt(string(v.Raw()), 10, 64)
		return seconds, err == nil && seconds > 0 && seconds <= maxDate
	}, "Unix seconds, a whole number")
}

// setRevocationDates adds the default dates and checks them. tokenExpires is the `exp` of
// the token, zero for another selector. A token lives longer in an extended session.
func (c *call) setRevocationDates(r *state.Revocation, tokenExpires time.Time) error {
	now := c.Now()
	if r.IssuedBefore == 0 && (r.Selector == state.SelectViewer || r.Selector == state.SelectVideo) {
		r.IssuedBefore = now.Unix()
	}
	lifetime := c.Policy.MaxLifetime
	switch {
	case r.Expires != 0:
	case !tokenExpires.IsZero():
		r.Expires = min(tokenExpires.Add(c.MaxSession).Unix(), maxDate)
	case lifetime > 0:
		last := time.Unix(max(now.Unix(), r.IssuedBefore)+1, 0)
		r.Expires = min(last.Add(lifetime).Add(c.MaxSession).Unix(), maxDate)
	default:
		return badRequest("expires is missing, and the gateway has no max_token_lifetime: give the Unix seconds at which the last of the tokens expires")
	}
	if r.Expires <= now.Unix() {
		return badRequest("expires is %d, which is in the past", r.Expires)
	}
	return nil
}

// listRevocations lists the revocations in force, newest first.
func (c *call) listRevocations(strictjson.Value) (any, error) {
	read := func(add func(*state.Revocation)) error {
		all := c.State.Revocations()
		if all == nil {
			return state.ErrUnavailable
		}
		for _, revocation := range all.Live(c.Now()) {
			add(revocation)
		}
		return nil
	}
	place := func(r *state.Revocation) (time.Time, string) { return r.Created, r.ID }
	return listInPages(c, nil, read, place, describeRevocation)
}

func describeRevocation(r *state.Revocation) listedRevocation {
	l := listedRevocation{ID: r.ID, IssuedBefore: r.IssuedBefore, Expires: r.Expires, Reason: r.Reason, Created: formatTime(r.Created)}
	*map[state.Selector]*string{
		state.SelectToken: &l.Token, state.SelectJTI: &l.JTI, state.SelectViewer: &l.UID, state.SelectVideo: &l.Video, state.SelectSession: &l.Session,
	}[r.Selector] = r.Value
	return l
}

// deleteRevocation takes a revocation back.
func (c *call) deleteRevocation(strictjson.Value) (any, error) {
	known, err := c.State.TakeBack(c.ctx(), c.subject)
	if err == nil && !known {
		err = refuse(http.StatusNotFound, codeNotFound, "there is no revocation %.80q", c.subject)
	}
	if err != nil {
		return nil, err
	}
	return createdRevocation{c.subject}, nil
}
