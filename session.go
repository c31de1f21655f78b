package signedplayback

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/cmcd"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/state"
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

// minSessionSecret is the length of the shortest session_secret.
const minSessionSecret = 16

// sessionAuthority finds the secret that authenticates sessions in paths: that of the
// config, else that of the store.
type sessionAuthority struct {
	state  *state.State
	fixed  *sessions.Authority // nil without session_secret
	stored atomic.Pointer[storedAuthority]
}

type storedAuthority struct {
	*sessions.Authority
	secret *[state.SecretLength]byte
}

// countsSessions reports whether `sessions` is on.
func (a *App) countsSessions() bool { return a.Sessions != nil && *a.Sessions }

func (a *App) provisionSessionSecret() error {
	switch {
	case !a.countsSessions() && a.SessionSecret != "":
		return fmt.Errorf("session_secret: %w", errSessionsOff)
	case !a.countsSessions():
		return nil
	}
	a.authority = &sessionAuthority{state: a.state.State}
	if a.SessionSecret == "" {
		a.state.FollowSessionSecret(context.Background(), false)
		return nil
	}
	secret, err := resolveSecret(a.SessionSecret)
	if err != nil {
		return fmt.Errorf("session_secret: %w", err)
	}
	if len(secret) < minSessionSecret {
		return fmt.Errorf("session_secret: it has %d bytes, want at least %d; `openssl rand -hex 32` makes one", len(secret), minSessionSecret)
	}
	a.authority.fixed = sessions.NewAuthority([]byte(secret))
	a.eventsKey = keyOfEvents(secret)
	return nil
}

// startSessions has the store keep a secret, if the config has none.
func (a *App) startSessions() {
	if a.countsSessions() && a.authority.fixed == nil {
		a.state.FollowSessionSecret(context.Background(), true)
	}
}

// get returns nil while the secret of the store is unknown.
func (s *sessionAuthority) get() *sessions.Authority {
	if s.fixed != nil {
		return s.fixed
	}
	secret := s.state.SessionSecret()
	if secret == nil {
		return nil
	}
	known := s.stored.Load()
	if known == nil || known.secret != secret {
		known = &storedAuthority{sessions.NewAuthority(secret[:]), secret}
		s.stored.Store(known)
	}
	return known.Authority
}

// checkSession counts the request for its session, which it may begin. The manifest with
// which a session begins is counted when it is known to be one (see beginSession).
func checkSession(d *decision) error {
	if !d.app.countsSessions() {
		if d.Manifest {
			return d.checkManifestStart()
		}
		return nil
	}
	switch authority := d.app.authority.get(); {
	case authority == nil:
		return refuse(reasonStateUnavailable, errSessionSecret)
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
	text, authority := d.target.Session, d.app.authority.get()
	if authority == nil {
		return sessions.Key{}, refuse(reasonStateUnavailable, errSessionSecret)
	}
	if d.verified != nil {
		last := d.verified.session.Load()
		if last != nil && last.authority == authority && subtle.ConstantTimeCompare([]byte(last.text), []byte(text)) == 1 {
			return last.key, nil
		}
	}
	key, err := authority.Verify(text, d.owner())
	if err != nil {
		return key, refuse(reasonSessionInvalid, errSessionInvalid)
	}
	if d.verified != nil {
		d.verified.session.Store(&verifiedSession{authority, string([]byte(text)), key})
	}
	return key, nil
}

// verifiedSession is the session of the last request with a token, so that the requests of one
// player have it verified once.
type verifiedSession struct {
	authority *sessions.Authority
	text      string
	key       sessions.Key
}

// owner returns what the session ids of this request belong to.
func (d *decision) owner() sessions.Owner {
	switch {
	case d.target.Token == "":
		return sessions.Owner{Video: d.target.VideoID}
	case d.verified != nil && d.verified.key != nil:
		return sessions.Owner{Token: d.verified.digest}
	default: // in report-only mode, or assumed by `explain`
		return sessions.Owner{Token: sha256.Sum256([]byte(d.target.Token))}
	}
}

// visitOutside counts a request without a session in its path. What it begins has no id, so
// only this gate and its fleet know of it.
func (d *decision) visitOutside(authority *sessions.Authority) error {
	client := d.outsideClient()
	key := d.outsideKey(authority, client)
	if t := d.verified; t != nil && t.startBy >= 0 {
		err := d.checkStartBy(d.app.now())
		if runs, _ := d.app.state.tracker.Runs(key); err != nil && !runs {
			return err
		}
	}
	return d.visit(sessions.Visit{Key: key, Address: client.address})
}

// outsideClient distinguishes clients without a session in their path.
type outsideClient struct {
	address netip.Addr
	named   bool   // text is what the player calls its session, and not its user agent
	text    string // without a copy of its own
}

func (d *decision) outsideClient() (c outsideClient) {
	c.address, _ = clientAddress(d.request)
	if c.text = cmcd.Session(d.request.Header, d.query); c.text != "" {
		c.named = true
	} else if agent := d.request.Header["User-Agent"]; len(agent) > 0 {
		c.text = agent[0]
	}
	return c
}

// outsideSession is the session of the last such request with a token, so that the requests of one
// player have its key computed once.
type outsideSession struct {
	authority *sessions.Authority
	client    outsideClient
	key       sessions.Key
}

func (d *decision) outsideKey(authority *sessions.Authority, client outsideClient) (key sessions.Key) {
	if d.verified != nil {
		if last := d.verified.outside.Load(); last != nil && last.authority == authority && last.client == client {
			return last.key
		}
	}
	if client.named {
		key = authority.KeyOfPlayer(d.owner(), client.text)
	} else {
		key = authority.KeyOfClient(d.owner(), client.address, client.text)
	}
	if d.verified != nil {
		client.text = strings.Clone(client.text)
		d.verified.outside.Store(&outsideSession{authority, client, key})
	}
	return key
}

// followsPlaylist reports whether the client has had this playlist already, as a live one without a session.
func (d *decision) followsPlaylist(authority *sessions.Authority) bool {
	return d.app.state.tracker.Follows(d.outsideKey(authority, d.outsideClient()), d.playlist())
}

func (d *decision) playlist() uint32 { return crc32.ChecksumIEEE([]byte(d.target.Suffix.Decoded)) }

// mayBegin refuses what may be a manifest before the origin is asked, if it can neither begin a
// session nor be of one that runs. The response tells which of the two it is.
func (d *decision) mayBegin(authority *sessions.Authority) error {
	d.uncounted = true
	runs, admitted := d.app.state.tracker.Runs(d.outsideKey(authority, d.outsideClient()))
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
	return d.app.countsSessions() && d.target.Session == "" && d.app.authority.get() != nil
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
		err := d.visitOutside(d.app.authority.get())
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
		return refuse(reasonStateUnavailable, errRevocationsUnknown)
	}
	if all.HasSessions() && all.Session(key.ID().String(), d.now()) != nil {
		return refuse(reasonSessionEnded, errSessionEnded)
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
		v.Viewer, v.Expires = t.sessionViewer, t.expiresAt()
		v.Limit = sessions.SmallerLimit(t.sessionLimit, d.settings.maxSessions)
	}
	return v
}

func sessionRefusal(err error) error {
	switch {
	case err == nil || isRefusal(err):
		return err
	case errors.Is(err, sessions.ErrEnded):
		return refuse(reasonSessionEnded, errSessionEnded)
	default:
		return refuse(reasonSessionLimit, errSessionLimit)
	}
}

// checkStartBy refuses what begins at or after the time of the claim startBy.
func (d *decision) checkStartBy(begins time.Time) error {
	if d.verified != nil && d.verified.startBy >= 0 && begins.Unix() >= d.verified.startBy {
		return refuse(reasonStartByPassed, errStartBy)
	}
	return nil
}

// isExtended reports whether an expired token still plays for the session in the path, which
// has been extended.
func (d *decision) isExtended(t *verifiedToken, why error) bool {
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
	if latest := t.expiresAt().Add(time.Duration(d.app.MaxSession)); until.After(latest) {
		until = latest
	}
	// The other claims count as a second before exp.
	if !d.now().Before(until) || t.check(t.expiresAt().Add(-time.Second), d.app.policy) != nil {
		return false
	}
	d.until = until
	return true
}

// sessionClient implements sessions.Client.
type sessionClient struct{ d *decision }

func (c sessionClient) Country() string   { return c.d.knownCountry() }
func (c sessionClient) UserAgent() string { return redact.Tokens(c.d.request.UserAgent()) }
