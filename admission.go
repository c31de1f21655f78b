package signedplayback

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/maypok86/otter/v2"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/admission"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/webhook"
	"github.com/signed-playback/caddy-signed-playback/internal/worklimit"
)

const (
	// A viewer, or without a token a network, may begin this many sessions at once, and then so
	// many a second. A question takes a second at most, so no more than 26 of the 64 that package
	// admission asks at a time are about one viewer, however slow the back end is.
	admissionBurst = 16
	admissionRate  = 10

	// maxLivePlaylists bounds the playlists of which the gate knows that players are not
	// led below a session.
	maxLivePlaylists = 10_000
)

// admissionDesk asks the operator's back end whether sessions may begin.
type admissionDesk struct {
	*admission.Client
	url          *url.URL
	allowOnError bool
	budgets      *worklimit.Limit[[sha256.Size]byte]
	live         *otter.Cache[string, struct{}]
	log          *zap.Logger // for each message once a minute
}

// admitted is an answer that a decision has got before the origin was asked.
type admitted struct {
	id    sessions.ID
	text  string // of the session in paths, "" for one that has none
	terms sessions.Terms
	err   error // a refusal
}

var (
	onErrorWords = twoWords{"on_error", "deny", "allow"}

	errAdmissionURL    = errors.New("admission takes the URL of your back end, and perhaps `on_error allow` or `on_error deny`")
	errStartsLimited   = errors.New("too many playback sessions of this viewer begin at once; try again in a moment")
	errOnErrorNoServer = errors.New("admission_on_error: it needs admission, the URL of your back end")
)

// provisionAdmission comes after the secrets. Its errors quote no URL, which may contain a secret.
func (a *App) provisionAdmission(ctx caddy.Context) error {
	allow, err := onErrorWords.isSecond(a.AdmissionOnError)
	switch {
	case err != nil:
		return fmt.Errorf("admission: %w", err)
	case a.Admission == "" && a.AdmissionOnError != "":
		return errOnErrorNoServer
	case a.Admission == "":
		return nil
	}
	address, err := resolveSecret(a.Admission)
	var u *url.URL
	if err == nil {
		u, err = webhook.Parse(address)
	}
	if err != nil {
		return fmt.Errorf("admission: %w", err)
	}
	if webhook.IsExposed(u, isLoopback) {
		a.logger.Warn("admission is not encrypted, so others on the network can read who watches and let anybody begin; use https", zap.String("host", u.Host))
	}
	if a.eventsKey == nil {
		a.logger.Warn("admission without session_secret: the questions have no signature, so your back end cannot tell them from forged ones; set session_secret", zap.String("host", u.Host))
	}
	a.admission = &admissionDesk{
		Client: admission.New(admission.Config{URL: u, Key: a.eventsKey, Now: time.Now, Asked: a.metrics.countAdmission}),
		url:    u, allowOnError: allow, budgets: worklimit.New[[sha256.Size]byte](admissionRate, admissionBurst),
		live: otter.Must(&otter.Options[string, struct{}]{MaximumSize: maxLivePlaylists}),
		log:  sampledLogger(ctx.Logger(), time.Minute, 1),
	}
	return nil
}

// parseAdmission reads a URL that no error quotes: it may contain a secret.
func (o *SessionOptions) parseAdmission(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) != 1 && (len(args) != 3 || args[1] != onErrorWords.option) || args[0] == "" {
		return d.Errf("%v, not \"%d\" arguments", errAdmissionURL, len(args))
	}
	o.Admission = args[0]
	if len(args) > 1 {
		o.AdmissionOnError = args[2]
		if _, err := onErrorWords.isSecond(args[2]); err != nil || args[2] == "" {
			return d.Errf("admission: on_error %q: want deny or allow", args[2])
		}
	}
	if hasPlaceholder(o.Admission) {
		return nil // Provision resolves and checks it
	}
	if _, err := webhook.Parse(o.Admission); err != nil {
		return d.Errf("admission: %v", err)
	}
	return nil
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
	if _, live := desk.live.GetIfPresent(d.livePlaylist()); d.Manifest && !live {
		text = authority.New(d.owner(), d.now())
		key, _ = sessions.KeyIn(text)
	} else {
		key = d.outsideKey(authority, d.outsideClient())
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
	return d.app.admission != nil && !d.reports(admissionCheck) && !d.reports(sessionsCheck)
}

// livePlaylist returns the key of a manifest in admissionDesk.live, the manifests into which no
// session is written.
func (d *decision) livePlaylist() string { return d.video + "/" + d.target.Suffix.Decoded }

// learnManifest remembers whether a session is written into the manifest of a response.
func (d *decision) learnManifest(leadsBelow bool) {
	switch desk := d.app.admission; {
	case d.admitted == nil || !d.Manifest:
	case leadsBelow:
		desk.live.Invalidate(d.livePlaylist())
	default:
		desk.live.Set(strings.Clone(d.livePlaylist()), struct{}{})
	}
}

// newSessionText returns the text of the session that the response begins.
func (d *decision) newSessionText() string {
	if d.admitted != nil && d.admitted.text != "" {
		return d.admitted.text
	}
	return d.app.authority.get().New(d.owner(), d.now())
}

// admit asks the back end whether a session may begin. In report-only mode, the caller lets it
// begin anyway.
func (d *decision) admit(ctx context.Context, id sessions.ID) (sessions.Terms, error) {
	if d.admitted != nil && d.admitted.id == id {
		return d.admitted.terms, d.admitted.err
	}
	terms, err := d.app.admission.ask(ctx, d, id)
	if err != nil && !d.enforcesAdmission() {
		d.report(err)
	}
	return terms, err
}

// ask asks within the budget of the viewer. Its errors are refusals, whose texts viewers may read:
// only the log has the cause.
func (a *admissionDesk) ask(ctx context.Context, d *decision, id sessions.ID) (sessions.Terms, error) {
	v := d.complete(sessions.Visit{})
	network := ""
	if prefix := sessions.NetworkOf(v.Address); prefix.IsValid() {
		network = prefix.String()
	}
	own := worklimit.Keys[[sha256.Size]byte]{Own: sha256.Sum256([]byte(cmp.Or(v.Viewer, network)))}
	if !a.budgets.Spend(own) {
		return sessions.Terms{}, refuse(reasonVerificationLimited, errStartsLimited)
	}
	question := admission.Question{
		ID: id.String(), Video: d.video, Country: d.knownCountry(), Network: network,
		UserAgent: sessions.ShortUserAgent(v.Client.UserAgent()),
	}
	if t := d.verified; t != nil {
		question.UID, question.JTI = t.viewer, t.id
	}
	terms, err := a.Ask(ctx, question)
	switch {
	case err == nil:
		return terms, nil
	case errors.Is(err, admission.ErrDenied):
		return terms, refuse(reasonAdmissionDenied, admission.ErrDenied)
	}
	a.log.Error("the back end of admission gives no valid answer", zap.String("host", a.url.Host), zap.Bool("allowed", a.allowOnError), zap.Error(err))
	if a.allowOnError {
		return sessions.Terms{}, nil
	}
	return terms, refuse(reasonAdmissionUnavailable, admission.ErrUnavailable)
}

// onError names what happens without an answer.
func (a *admissionDesk) onError() string {
	if a.allowOnError {
		return onErrorWords.second
	}
	return onErrorWords.first
}
