package signedplayback

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
)

// renewalSuffix is the suffix below a session at which a new token of the same video and viewer
// takes the session over: /<new token>/~<session of the old token>/renew.
const renewalSuffix = "renew"

// sessionRenewal is the answer to a renewal.
type sessionRenewal struct {
	// The session as it is written in paths below the new token, with the tilde. It is the
	// same session, so it is counted once.
	Session string `json:"session"`

	// Until when URLs of the old token play, in Unix seconds: its exp, or later if
	// max_session allows that.
	Until int64 `json:"until"`
}

// renewsSession reports whether the request has a session taken over.
func (d *decision) renewsSession() bool {
	return d.target.Suffix.Decoded == renewalSuffix && d.target.Session != ""
}

// checkRenewal finds the session that the token in the path takes over: one that runs, of the
// same video and of the viewer whom both tokens name.
func (d *decision) checkRenewal() error {
	key, ok := sessions.KeyIn(d.target.Session)
	t := d.verified
	if !ok || t == nil {
		return refuse(reasonSessionInvalid, errSessionInvalid)
	}
	if err := d.checkRevokedSession(key); err != nil {
		return err
	}
	info, found, err := d.app.state.tracker.FindKey(d.request.Context(), key)
	switch {
	case err != nil:
		return refuse(reasonStateUnavailable, errSessionsUnknown)
	case !found || info.Video != d.video || info.Viewer != t.sessionViewer:
		return refuse(reasonSessionInvalid, errSessionInvalid)
	}
	d.renewed = &info
	return nil
}

// answerRenewal extends the session, so that a player may keep its old URLs, and returns the
// session as it is in paths below the new token, for players that can change their URLs.
func (g *Gate) answerRenewal(w http.ResponseWriter, d *decision) error {
	key, _ := sessions.KeyIn(d.target.Session)
	until, extended := d.renewed.Expires, d.app.state.tracker.Until(key)
	if latest := until.Add(time.Duration(g.app.MaxSession)); g.app.MaxSession > 0 && !until.IsZero() {
		if until = d.verified.expiresAt(); until.After(latest) {
			until = latest
		}
		// A token that does not last longer must not write to the store.
		if until.After(extended) && until.After(d.renewed.Expires) {
			if err := d.app.state.Extend(d.request.Context(), d.renewed.ID.String(), until); err != nil {
				return d.refuse(w, refuse(reasonStateUnavailable, errSessionsUnknown))
			}
			g.app.state.tracker.Extend(d.renewed.ID, until)
		}
	}
	if extended.After(until) {
		until = extended
	}
	body, err := json.Marshal(sessionRenewal{sessions.Prefix + g.app.authority.get().Text(key, d.owner()), until.Unix()})
	if err != nil {
		return err
	}
	h := w.Header()
	d.own, d.rooted = newOwnHeaders(), true // for this viewer alone
	headerpolicy.DropCORS(h)
	d.setAccessHeaders(h)
	headerpolicy.SetSandbox(h)
	h.Set("Content-Type", jsonType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if d.request.Method != http.MethodHead {
		_, _ = w.Write(body) // the client has cancelled
	}
	return nil
}
