package signedplayback

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// reason says why a request is refused. Players, operators and metrics rely on
// these words.
type reason string

const (
	reasonPathInvalid           reason = "path_invalid"
	reasonTokenRequired         reason = "token_required"
	reasonTokenMalformed        reason = "token_malformed"
	reasonAlgorithmNotAllowed   reason = "algorithm_not_allowed"
	reasonKeyUnknown            reason = "key_unknown"
	reasonSignatureInvalid      reason = "signature_invalid"
	reasonAudienceNotAllowed    reason = "audience_not_allowed"
	reasonTokenExpired          reason = "token_expired"
	reasonTokenNotYetValid      reason = "token_not_yet_valid"
	reasonTokenLifetimeExceeded reason = "token_lifetime_exceeded"
	reasonRulesInvalid          reason = "rules_invalid"
	reasonTokenRevoked          reason = "token_revoked"
	reasonRuleBlocked           reason = "rule_blocked"
	reasonOriginRequired        reason = "origin_required"
	reasonOriginNotAllowed      reason = "origin_not_allowed"
	reasonDownloadNotAllowed    reason = "download_not_allowed"
	reasonNotAvailableYet       reason = "not_available_yet"
	reasonNoLongerAvailable     reason = "no_longer_available"
	reasonClientIPUnknown       reason = "client_ip_unknown"
	reasonStartByPassed         reason = "start_by_passed"
	reasonSessionInvalid        reason = "session_invalid"
	reasonSessionLimit          reason = "session_limit"
	reasonSessionEnded          reason = "session_ended"
	reasonAdmissionDenied       reason = "admission_denied"
	reasonServiceWorker         reason = "service_worker_not_allowed"
	reasonMethodNotAllowed      reason = "method_not_allowed"
	reasonTooEarly              reason = "too_early"
	reasonVerificationLimited   reason = "verification_limited"
	reasonManifestInvalid       reason = "manifest_invalid"
	reasonStateUnavailable      reason = "state_unavailable"
	reasonCountryUnavailable    reason = "country_unavailable"
	reasonNetworkUnavailable    reason = "network_unavailable"
	reasonAdmissionUnavailable  reason = "admission_unavailable"
)

// reasons lists all reasons.
var reasons = [...]reason{
	reasonPathInvalid, reasonTokenRequired, reasonTokenMalformed, reasonAlgorithmNotAllowed, reasonKeyUnknown,
	reasonSignatureInvalid, reasonAudienceNotAllowed, reasonTokenExpired, reasonTokenNotYetValid,
	reasonTokenLifetimeExceeded, reasonRulesInvalid, reasonTokenRevoked, reasonRuleBlocked, reasonOriginRequired, reasonOriginNotAllowed, reasonDownloadNotAllowed,
	reasonNotAvailableYet, reasonNoLongerAvailable, reasonClientIPUnknown, reasonStartByPassed, reasonSessionInvalid,
	reasonSessionLimit, reasonSessionEnded, reasonAdmissionDenied, reasonServiceWorker, reasonMethodNotAllowed, reasonTooEarly, reasonVerificationLimited,
	reasonManifestInvalid, reasonStateUnavailable, reasonCountryUnavailable, reasonNetworkUnavailable, reasonAdmissionUnavailable,
}

// status maps a reason to an HTTP status:
//
//	400  the path is not a playback path
//	401  the token is missing or not valid, or it is too late to begin with it
//	403  an access rule, the allowed origins, the schedule, a missing claim, its use, the limit of sessions or the back end of admission forbid it
//	405  the method is not GET, HEAD or OPTIONS
//	425  the TLS handshake is unfinished and a rule needs the address
//	429  the network has sent too many tokens with invalid signatures, or too many sessions begin
//	502  the origin's manifest cannot be rewritten, or it redirects elsewhere
//	503  the keys, settings or a geo database cannot be read, or the back end of admission does not answer
//	500  an unknown reason, which is a bug of the gate
func (r reason) status() int {
	switch r {
	case reasonPathInvalid:
		return http.StatusBadRequest
	case reasonTokenRequired, reasonTokenMalformed, reasonAlgorithmNotAllowed, reasonKeyUnknown,
		reasonSignatureInvalid, reasonAudienceNotAllowed, reasonTokenExpired, reasonTokenNotYetValid,
		reasonTokenLifetimeExceeded, reasonRulesInvalid, reasonTokenRevoked, reasonStartByPassed, reasonSessionInvalid:
		return http.StatusUnauthorized
	case reasonRuleBlocked, reasonOriginRequired, reasonOriginNotAllowed, reasonDownloadNotAllowed,
		reasonNotAvailableYet, reasonNoLongerAvailable, reasonClientIPUnknown, reasonSessionLimit, reasonSessionEnded, reasonAdmissionDenied, reasonServiceWorker:
		return http.StatusForbidden
	case reasonMethodNotAllowed:
		return http.StatusMethodNotAllowed
	case reasonTooEarly:
		return http.StatusTooEarly
	case reasonVerificationLimited:
		return http.StatusTooManyRequests
	case reasonManifestInvalid:
		return http.StatusBadGateway
	case reasonStateUnavailable, reasonCountryUnavailable, reasonNetworkUnavailable, reasonAdmissionUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// refusal is the error of a pipeline step that refuses a request. Its text reaches
// logs and sometimes viewers, so it contains no token.
type refusal struct {
	reason reason
	err    error
}

func refuse(r reason, err error) error { return &refusal{r, err} }

func isRefusal(err error) bool {
	_, is := errors.AsType[*refusal](err)
	return is
}

func (r *refusal) Error() string { return fmt.Sprintf("%s: %v", r.reason, r.err) }

func (r *refusal) Unwrap() error { return r.err }

// tokenReason maps an error of package token to a reason.
func tokenReason(err error) reason {
	switch {
	case errors.Is(err, token.ErrAlgorithm):
		return reasonAlgorithmNotAllowed
	case errors.Is(err, token.ErrKeyUnknown):
		return reasonKeyUnknown
	case errors.Is(err, token.ErrSignature):
		return reasonSignatureInvalid
	case errors.Is(err, token.ErrAudience):
		return reasonAudienceNotAllowed
	case errors.Is(err, token.ErrExpired):
		return reasonTokenExpired
	case errors.Is(err, token.ErrNotYetValid):
		return reasonTokenNotYetValid
	case errors.Is(err, token.ErrLifetime):
		return reasonTokenLifetimeExceeded
	}
	return reasonTokenMalformed
}

const (
	reasonHeader   = "Signed-Playback-Reason"
	allowedMethods = "GET, HEAD, OPTIONS"
)

// deny turns a refusal into response headers and the Caddy error that logs and
// handle_errors see. reason.status has the table of statuses.
func deny(w http.ResponseWriter, err error) error {
	why, ok := errors.AsType[*refusal](err)
	if !ok {
		return caddyhttp.Error(http.StatusInternalServerError, err)
	}
	h := w.Header()
	h.Set(reasonHeader, string(why.reason))
	h.Set("Cache-Control", "no-store")
	headerpolicy.DropSharedCaching(h)
	setRefusalCORS(h)
	headerpolicy.SetSandbox(h)
	status := why.reason.status()
	switch status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer error="invalid_token"`)
	case http.StatusMethodNotAllowed:
		h.Set("Allow", allowedMethods)
	case http.StatusTooManyRequests:
		h.Set("Retry-After", "1")
	}
	return caddyhttp.Error(status, why)
}
