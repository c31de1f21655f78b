package signedplayback

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash/crc32"
	"net/http"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/admission"
	"github.com/signed-playback/caddy-signed-playback/internal/cmcd"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/reportonly"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/verification"
	"github.com/signed-playback/caddy-signed-playback/token"
)

var (
	errSessionInvalid  = errors.New("the session in the path does not belong to this token or video")
	errSessionEnded    = errors.New("the session has ended: the viewer has begun another one, or the operator has ended it")
	errSessionLimit    = errors.New("the viewer has as many playback sessions as permitted")
	errStartBy         = errors.New("the time in the claim startBy has passed, so no session begins")
	errSessionsUnknown = errors.New("the session cannot be looked up or extended: the store does not answer")
	errSessionSecret   = errors.New("the secret of sessions cannot be read from the store; set session_secret to need no store")
)

// checkSession counts the request for its session, which it may begin. The manifest with
// which a session begins is counted when it is known to be one (see beginSession).
func checkSession(d *decision) error {
	if !d.app.countsSessions() {
		if d.Manifest {
			return d.checkManifestStart()
		}
		return nil
	}
	switch authority := d.app.authority.Authority(); {
	case authority == nil:
		return refusal.StateUnavailable.Because(errSessionSecret)
	case d.renewsSession():
		return d.checkRenewal()
	case d.target.Session != "":
		key, err := d.sessionInPath()
		if err == nil {
			err = d.checkStartBy(key.Begun())
		}
		if err != nil {
			return err
		}
		return d.visit(sessions.Visit{Key: key, Begun: key.Begun()})
	case d.Resource.Own, d.Kind == playbackpath.KindThumbnail, d.request.Method == http.MethodHead:
		return nil // none of it is playback
	case d.Media:
		return d.visitOutside(authority)
	default: // a manifest, or what may be one
		return d.mayBegin(authority)
	}
}

// sessionInPath returns the key of the session in the path, if it is one of this token or
// video.
func (d *decision) sessionInPath() (sessions.Key, error) {
	authority := d.app.authority.Authority()
	if authority == nil {
		return sessions.Key{}, refusal.StateUnavailable.Because(errSessionSecret)
	}
	key, err := d.sessionMemory().Verify(authority, d.target.Session, d.owner())
	if err != nil {
		return key, refusal.SessionInvalid.Because(errSessionInvalid)
	}
	return key, nil
}

// sessionMemory returns what the token of the request remembers, nil without a token.
func (d *decision) sessionMemory() *sessions.Memory {
	if d.verified == nil {
		return nil
	}
	return &d.verified.Sessions
}

// owner returns what the session ids of this request belong to.
func (d *decision) owner() sessions.Owner {
	switch {
	case d.target.Token == "":
		return sessions.Owner{Video: d.target.VideoID}
	case d.verified != nil && d.verified.Key != nil:
		return sessions.Owner{Token: d.verified.Digest}
	default: // in report-only mode, or assumed by `explain`
		return sessions.Owner{Token: sha256.Sum256([]byte(d.target.Token))}
	}
}

// visitOutside counts a request without a session in its path. What it begins has no id, so
// only this gate and its fleet know of it.
func (d *decision) visitOutside(authority *sessions.Authority) error {
	player := d.player()
	key := d.sessionMemory().KeyOf(authority, player, d.owner())
	if t := d.verified; t != nil && t.StartBy >= 0 {
		err := d.checkStartBy(d.app.now())
		if runs, _ := d.app.state.tracker.Runs(key); err != nil && !runs {
			return err
		}
	}
	return d.visit(sessions.Visit{Key: key, Address: player.Address})
}

func (d *decision) player() (p sessions.Player) {
	p.Address, _ = clientAddress(d.request)
	if p.Text = cmcd.Session(d.request.Header, d.query); p.Text != "" {
		p.Named = true
	} else if agent := d.request.Header["User-Agent"]; len(agent) > 0 {
		p.Text = agent[0]
	}
	return p
}

// outsideKey returns the key of the session of a request without one in its path.
func (d *decision) outsideKey(authority *sessions.Authority) sessions.Key {
	return d.sessionMemory().KeyOf(authority, d.player(), d.owner())
}

// followsPlaylist reports whether the client has had this playlist already, as a live one without a session.
func (d *decision) followsPlaylist(authority *sessions.Authority) bool {
	return d.app.state.tracker.Follows(d.outsideKey(authority), d.playlist())
}

func (d *decision) playlist() uint32 { return crc32.ChecksumIEEE([]byte(d.target.Suffix.Decoded)) }

// mayBegin refuses what may be a manifest before the origin is asked, if it can neither begin a
// session nor be of one that runs. The response tells which of the two it is.
func (d *decision) mayBegin(authority *sessions.Authority) error {
	d.uncounted = true
	runs, admitted := d.app.state.tracker.Runs(d.outsideKey(authority))
	if runs && (admitted || !d.enforcesAdmission()) {
		return nil
	}
	if !runs {
		if err := d.checkStartBy(d.now()); err != nil {
			return err
		}
		if err := d.app.state.tracker.MayBegin(d.complete(sessions.Visit{Begins: true})); err != nil {
			return sessionRefusal(err)
		}
	}
	return d.admitBeforeOrigin(authority)
}

// mayLeadBelow reports whether a manifest in the response leads below a new session, if players
// begin with it: the request has none.
func (d *decision) mayLeadBelow() bool {
	return d.app.countsSessions() && d.target.Session == "" && d.app.authority.Authority() != nil
}

// checkManifestStart holds startBy against a manifest with sessions off.
func (d *decision) checkManifestStart() error {
	if d.app.countsSessions() {
		return nil
	}
	return d.checkStartBy(d.now())
}

// beginSession counts a request of which the response tells what it is: the beginning of the
// session whose text is in the response, or, if that is "", one without a session in its path.
// A HEAD begins none.
func (d *decision) beginSession(text string) error {
	d.rooted = text != ""
	if !d.uncounted {
		return nil
	}
	d.uncounted = false
	d.learnManifest(d.rooted)
	if text == "" {
		err := d.visitOutside(d.app.authority.Authority())
		if d.session != nil {
			d.session.Follow(d.playlist())
		}
		return d.unlessReported(err)
	}
	if err := d.checkStartBy(d.now()); err != nil {
		return d.unlessReported(err)
	}
	key, _ := sessions.KeyIn(text)
	return d.unlessReported(d.visit(sessions.Visit{Key: key, Begins: true}))
}

// checkRevokedSession refuses a session that the operator has ended for good.
func (d *decision) checkRevokedSession(key sessions.Key) error {
	all := d.app.state.Revocations()
	if all == nil {
		return refusal.StateUnavailable.Because(errRevocationsUnknown)
	}
	if all.HasSessions() && all.Session(key.ID().String(), d.now()) != nil {
		return refusal.SessionEnded.Because(errSessionEnded)
	}
	return nil
}

// visit counts a request for its session. It does not count one that `explain` replays.
func (d *decision) visit(v sessions.Visit) (err error) {
	if err := d.checkRevokedSession(v.Key); err != nil {
		return err
	}
	if d.explained() != nil {
		return nil
	}
	d.session, err = d.app.state.tracker.Visit(d.request.Context(), d.complete(v))
	return sessionRefusal(err)
}

// complete adds to a visit what it takes from the request.
func (d *decision) complete(v sessions.Visit) sessions.Visit {
	v.Video, v.Client = d.video, sessionClient{d}
	v.Asks, v.Enforces = d.app.admission != nil, d.enforcesAdmission()
	if !v.Address.IsValid() {
		v.Address, _ = clientAddress(d.request)
	}
	if t := d.verified; t != nil {
		v.Viewer, v.Expires = t.SessionViewer, t.ExpiresAt()
		v.Limit = sessions.SmallerLimit(t.SessionLimit, d.settings.maxSessions)
	}
	return v
}

func sessionRefusal(err error) error {
	switch {
	case err == nil || refusal.Is(err):
		return err
	case errors.Is(err, sessions.ErrEnded):
		return refusal.SessionEnded.Because(errSessionEnded)
	default:
		return refusal.SessionLimit.Because(errSessionLimit)
	}
}

// checkStartBy refuses what begins at or after the time of the claim startBy.
func (d *decision) checkStartBy(begins time.Time) error {
	if d.verified != nil && d.verified.StartBy >= 0 && begins.Unix() >= d.verified.StartBy {
		return refusal.StartByPassed.Because(errStartBy)
	}
	return nil
}

// isExtended reports whether an expired token still plays for the session in the path, which
// has been extended.
func (d *decision) isExtended(t *verification.Token, why error) bool {
	if d.target.Session == "" || !d.app.countsSessions() || !errors.Is(why, token.ErrExpired) {
		return false
	}
	d.verified = t
	key, err := d.sessionInPath()
	d.verified = nil
	if err != nil {
		return false
	}
	until := d.app.state.tracker.Until(key)
	// A revocation of the token lasts as long, whatever newer tokens or an earlier config permit.
	if latest := t.ExpiresAt().Add(time.Duration(d.app.MaxSession)); until.After(latest) {
		until = latest
	}
	// The other claims count as a second before exp.
	if !d.now().Before(until) || t.Check(t.ExpiresAt().Add(-time.Second), d.app.policy) != nil {
		return false
	}
	d.until = until
	return true
}

// sessionClient implements sessions.Client.
type sessionClient struct{ d *decision }

func (c sessionClient) Country() string   { return c.d.knownCountry() }
func (c sessionClient) UserAgent() string { return redact.Tokens(c.d.request.UserAgent()) }

// admitted is an answer that a decision has got before the origin was asked.
type admitted struct {
	id    sessions.ID
	text  string // of the session in paths, "" for one that has none
	terms sessions.Terms
	err   error // a refusal
}

// Admit implements sessions.Client.
func (c sessionClient) Admit(ctx context.Context, id sessions.ID) (sessions.Terms, error) {
	return c.d.admit(ctx, id)
}

// admitBeforeOrigin asks for the session that the manifest in the response probably begins, so
// that the origin is not asked for a viewer who may not begin one. Only the response tells which
// session that is. If it is another one, it is asked for then.
func (d *decision) admitBeforeOrigin(authority *sessions.Authority) error {
	desk := d.app.admission
	if desk == nil || d.explained() != nil {
		return nil
	}
	var key sessions.Key
	text := ""
	if d.Manifest && !desk.IsLive(d.livePlaylist()) {
		text = authority.New(d.owner(), d.now())
		key, _ = sessions.KeyIn(text)
	} else {
		key = d.outsideKey(authority)
	}
	terms, err := d.admit(d.request.Context(), key.ID())
	d.admitted = &admitted{key.ID(), text, terms, err}
	if d.enforcesAdmission() {
		return err
	}
	return nil
}

// enforcesAdmission reports whether a session must not play without the permission of the back end.
func (d *decision) enforcesAdmission() bool {
	return d.app.admission != nil && !d.reports(reportonly.Admission) && !d.reports(reportonly.Sessions)
}

// livePlaylist returns the key of a manifest in the memory of the desk.
func (d *decision) livePlaylist() string { return d.video + "/" + d.target.Suffix.Decoded }

// learnManifest remembers whether a session is written into the manifest of a response.
func (d *decision) learnManifest(leadsBelow bool) {
	if d.admitted != nil && d.Manifest {
		d.app.admission.Learn(d.livePlaylist(), !leadsBelow)
	}
}

// newSessionText returns the text of the session that the response begins.
func (d *decision) newSessionText() string {
	if d.admitted != nil && d.admitted.text != "" {
		return d.admitted.text
	}
	return d.app.authority.Authority().New(d.owner(), d.now())
}

// admit asks the back end whether a session may begin. In report-only mode, the caller lets it
// begin anyway.
func (d *decision) admit(ctx context.Context, id sessions.ID) (sessions.Terms, error) {
	if d.admitted != nil && d.admitted.id == id {
		return d.admitted.terms, d.admitted.err
	}
	terms, err := d.ask(ctx, id)
	if err != nil && !d.enforcesAdmission() {
		d.report(err)
	}
	return terms, err
}

// ask asks the back end. Its errors are refusals.
func (d *decision) ask(ctx context.Context, id sessions.ID) (sessions.Terms, error) {
	v := d.complete(sessions.Visit{})
	question := admission.Question{
		ID: id.String(), Video: d.video, Country: d.knownCountry(), UserAgent: sessions.ShortUserAgent(v.Client.UserAgent()),
	}
	if prefix := sessions.NetworkOf(v.Address); prefix.IsValid() {
		question.Network = prefix.String()
	}
	if t := d.verified; t != nil {
		question.UID, question.JTI = t.Viewer, t.ID
	}
	return d.app.admission.Admit(ctx, v.Viewer, question)
}
