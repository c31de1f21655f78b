// Package refusal says what becomes of a request, why the gate refuses one, and how a response
// tells the client so.
package refusal

import (
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// Result is the outcome of a request. It is a label of metrics and a value of
// logs, so it comes from a closed set.
type Result string

// The results.
const (
	Allowed     Result = "allowed"
	Refused     Result = "refused"
	WouldRefuse Result = "would_refuse"
	Preflight   Result = "preflight"
)

// Reason says why a request is refused. Players, operators and metrics rely on
// these words.
type Reason string

// The reasons.
const (
	PathInvalid           Reason = "path_invalid"
	TokenRequired         Reason = "token_required"
	TokenMalformed        Reason = "token_malformed"
	AlgorithmNotAllowed   Reason = "algorithm_not_allowed"
	KeyUnknown            Reason = "key_unknown"
	SignatureInvalid      Reason = "signature_invalid"
	AudienceNotAllowed    Reason = "audience_not_allowed"
	TokenExpired          Reason = "token_expired"
	TokenNotYetValid      Reason = "token_not_yet_valid"
	TokenLifetimeExceeded Reason = "token_lifetime_exceeded"
	RulesInvalid          Reason = "rules_invalid"
	TokenRevoked          Reason = "token_revoked"
	StartByPassed         Reason = "start_by_passed"
	SessionInvalid        Reason = "session_invalid"
	RuleBlocked           Reason = "rule_blocked"
	OriginRequired        Reason = "origin_required"
	OriginNotAllowed      Reason = "origin_not_allowed"
	DownloadNotAllowed    Reason = "download_not_allowed"
	NotAvailableYet       Reason = "not_available_yet"
	NoLongerAvailable     Reason = "no_longer_available"
	ClientIPUnknown       Reason = "client_ip_unknown"
	SessionLimit          Reason = "session_limit"
	SessionEnded          Reason = "session_ended"
	AdmissionDenied       Reason = "admission_denied"
	ServiceWorker         Reason = "service_worker_not_allowed"
	MethodNotAllowed      Reason = "method_not_allowed"
	TooEarly              Reason = "too_early"
	VerificationLimited   Reason = "verification_limited"
	ManifestInvalid       Reason = "manifest_invalid"
	StateUnavailable      Reason = "state_unavailable"
	CountryUnavailable    Reason = "country_unavailable"
	NetworkUnavailable    Reason = "network_unavailable"
	AdmissionUnavailable  Reason = "admission_unavailable"
)

// statuses has the HTTP status of each reason.
var statuses = []struct {
	status  int
	reasons []Reason
}{
	{http.StatusBadRequest, []Reason{PathInvalid}},
	// The token is missing or not valid, or it is too late to begin with it.
	{http.StatusUnauthorized, []Reason{
		TokenRequired, TokenMalformed, AlgorithmNotAllowed, KeyUnknown, SignatureInvalid, AudienceNotAllowed, TokenExpired,
		TokenNotYetValid, TokenLifetimeExceeded, RulesInvalid, TokenRevoked, StartByPassed, SessionInvalid,
	}},
	{http.StatusForbidden, []Reason{
		RuleBlocked, OriginRequired, OriginNotAllowed, DownloadNotAllowed, NotAvailableYet, NoLongerAvailable, ClientIPUnknown,
		SessionLimit, SessionEnded, AdmissionDenied, ServiceWorker,
	}},
	{http.StatusMethodNotAllowed, []Reason{MethodNotAllowed}},
	// The TLS handshake is unfinished and a rule needs the address.
	{http.StatusTooEarly, []Reason{TooEarly}},
	// The network has sent too many tokens with invalid signatures, or too many sessions begin.
	{http.StatusTooManyRequests, []Reason{VerificationLimited}},
	// The origin's manifest cannot be rewritten, or the origin redirects elsewhere.
	{http.StatusBadGateway, []Reason{ManifestInvalid}},
	// The keys, settings or a geo database cannot be read, or the back end of admission does not answer.
	{http.StatusServiceUnavailable, []Reason{StateUnavailable, CountryUnavailable, NetworkUnavailable, AdmissionUnavailable}},
}

// Reasons returns all reasons.
func Reasons() (all []Reason) {
	for _, row := range statuses {
		all = append(all, row.reasons...)
	}
	return all
}

// Status returns the HTTP status of a reason, 500 for an unknown one, which is a bug of
// the gate.
func (r Reason) Status() int {
	for _, row := range statuses {
		if slices.Contains(row.reasons, r) {
			return row.status
		}
	}
	return http.StatusInternalServerError
}

// Reportable reports whether report-only mode can let a request with this reason
// pass. It cannot if the video is unknown, if no setting allows the use, or if the
// origin has already answered.
func (r Reason) Reportable() bool {
	return !slices.Contains([]Reason{
		PathInvalid, MethodNotAllowed, ServiceWorker, TokenMalformed, AlgorithmNotAllowed, ManifestInvalid,
	}, r)
}

// Because returns an Error with this reason.
func (r Reason) Because(err error) error { return &Error{r, err} }

// Error refuses a request. Its text reaches logs and sometimes viewers, so it contains no
// token.
type Error struct {
	Reason Reason
	Err    error
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %v", e.Reason, e.Err) }

func (e *Error) Unwrap() error { return e.Err }

// Is reports whether an error refuses a request.
func Is(err error) bool {
	_, is := errors.AsType[*Error](err)
	return is
}

// ofToken has the reasons of errors of package token. All others are TokenMalformed.
var ofToken = map[error]Reason{
	token.ErrAlgorithm:   AlgorithmNotAllowed,
	token.ErrKeyUnknown:  KeyUnknown,
	token.ErrSignature:   SignatureInvalid,
	token.ErrAudience:    AudienceNotAllowed,
	token.ErrExpired:     TokenExpired,
	token.ErrNotYetValid: TokenNotYetValid,
	token.ErrLifetime:    TokenLifetimeExceeded,
}

// OfToken returns the Error for an error of package token.
func OfToken(err error) error {
	for cause, reason := range ofToken {
		if errors.Is(err, cause) {
			return reason.Because(err)
		}
	}
	return TokenMalformed.Because(err)
}

// AllowedMethods lists the methods of playback requests.
const AllowedMethods = "GET, HEAD, OPTIONS"

// SetHeaders sets the headers of a response that refuses a request.
func (e *Error) SetHeaders(h http.Header) {
	h.Set(headerpolicy.ReasonHeader, string(e.Reason))
	h.Set("Cache-Control", "no-store")
	headerpolicy.DropSharedCaching(h)
	headerpolicy.SetRefusalCORS(h)
	headerpolicy.SetSandbox(h)
	switch e.Reason.Status() {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer error="invalid_token"`)
	case http.StatusMethodNotAllowed:
		h.Set("Allow", AllowedMethods)
	case http.StatusTooManyRequests:
		h.Set("Retry-After", "1")
	}
}
