package token

import (
	"errors"
	"fmt"
)

// Errors of Parse, Verify and Claims.Check. The functions wrap them in errors
// with more detail, so compare with errors.Is. No error of this package contains
// any part of a token.
var (
	// ErrMalformed: the token is not in the one form that this package accepts.
	ErrMalformed = errors.New("token: malformed")
	// ErrAlgorithm: the header has no algorithm, or another one than RS256.
	ErrAlgorithm = errors.New("token: algorithm not allowed")
	// ErrKeyUnknown: the token names no key, or a key that is not in the set, for
	// example a revoked one.
	ErrKeyUnknown = errors.New("token: unknown key")
	// ErrSignature: the key that the token names has not signed it.
	ErrSignature = errors.New("token: invalid signature")
	// ErrAudience: the policy does not allow the `aud` or the `iss` of the token.
	ErrAudience = errors.New("token: audience or issuer not allowed")
	// ErrExpired: the time is `exp` or later.
	ErrExpired = errors.New("token: expired")
	// ErrNotYetValid: the time is before `nbf`.
	ErrNotYetValid = errors.New("token: not yet valid")
	// ErrLifetime: the token expires later than the policy allows.
	ErrLifetime = errors.New("token: expires too far in the future")
)

// ErrKey is wrapped by all errors about key material that cannot be used.
var ErrKey = errors.New("token: unusable key")

var errKeyForm = fmt.Errorf("%w: want JSON, PEM that starts with -----BEGIN, or base64 of one of them", ErrKey)

// The details of malformed tokens. They are made once, so that a flood of garbage
// costs no allocation for each token.
var (
	errLength          = fmt.Errorf("%w: longer than %d bytes", ErrMalformed, MaxLength)
	errSegments        = fmt.Errorf("%w: not three segments", ErrMalformed)
	errAlphabet        = fmt.Errorf("%w: not canonical unpadded base64url", ErrMalformed)
	errHeader          = fmt.Errorf("%w: header is not a strict JSON object", ErrMalformed)
	errMember          = fmt.Errorf("%w: header member other than alg, kid and typ", ErrMalformed)
	errType            = fmt.Errorf("%w: typ is not JWT", ErrMalformed)
	errKeyID           = fmt.Errorf("%w: kid is empty or not a string", ErrMalformed)
	errKeyIDs          = fmt.Errorf("%w: kid in header and payload differ", ErrMalformed)
	errPayload         = fmt.Errorf("%w: payload is not a strict JSON object", ErrMalformed)
	errSubject         = fmt.Errorf("%w: sub is not a video id", ErrMalformed)
	errNoExpiry        = fmt.Errorf("%w: no exp", ErrMalformed)
	errDate            = fmt.Errorf("%w: exp, nbf, iat or startBy is not a whole number of seconds from 0 to 2^53", ErrMalformed)
	errDownload        = fmt.Errorf("%w: downloadable is not true or false", ErrMalformed)
	errIdentifier      = fmt.Errorf("%w: jti or the claim that names the viewer is not a string of 1 to %d bytes", ErrMalformed, MaxIdentifier)
	errLimit           = fmt.Errorf("%w: climit is not a whole number from 1 to 2^31-1", ErrMalformed)
	errAlgorithm       = fmt.Errorf("%w: not RS256", ErrAlgorithm)
	errNoKeyID         = fmt.Errorf("%w: the token has no kid", ErrKeyUnknown)
	errAudience        = fmt.Errorf("%w: aud", ErrAudience)
	errIssuer          = fmt.Errorf("%w: iss", ErrAudience)
	errOriginal        = fmt.Errorf("%w: flags.original is not true or false", ErrMalformed)
	errSignatureLength = fmt.Errorf("%w: wrong length", ErrSignature)
)
