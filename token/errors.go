package token

import (
	"errors"
	"fmt"
)

// Errors of Parse, Verify and Claims.CheckTime. They are wrapped in errors that
// say what is wrong; compare them with errors.Is. No error of this package
// contains any part of a token.
var (
	// ErrMalformed is returned for a token that is not in the one form that
	// this package accepts, or whose claims are not.
	ErrMalformed = errors.New("token: malformed")
	// ErrAlgorithm is returned for a token whose header names no algorithm or
	// another one than RS256.
	ErrAlgorithm = errors.New("token: algorithm not allowed")
	// ErrKeyUnknown is returned for a token that names no key or one that is
	// not in the set, a revoked one for example.
	ErrKeyUnknown = errors.New("token: unknown key")
	// ErrSignature is returned for a token that its key has not signed.
	ErrSignature = errors.New("token: invalid signature")
	// ErrExpired is returned from the second that `exp` names on.
	ErrExpired = errors.New("token: expired")
	// ErrNotYetValid is returned before `nbf`.
	ErrNotYetValid = errors.New("token: not yet valid")
	// ErrLifetime is returned for a token that expires later than the verifier
	// allows.
	ErrLifetime = errors.New("token: expires too far in the future")
)

// ErrKey is wrapped by the errors about key material that cannot be used.
var ErrKey = errors.New("token: unusable key")

// What exactly is malformed. They are made once, because a flood of garbage
// must not cost an allocation a token.
var (
	errLength          = fmt.Errorf("%w: longer than %d bytes", ErrMalformed, MaxLength)
	errSegments        = fmt.Errorf("%w: not three segments", ErrMalformed)
	errAlphabet        = fmt.Errorf("%w: not canonical unpadded base64url", ErrMalformed)
	errHeader          = fmt.Errorf("%w: header is not a strict JSON object", ErrMalformed)
	errMember          = fmt.Errorf("%w: header member other than alg, kid and typ", ErrMalformed)
	errType            = fmt.Errorf("%w: typ is not JWT", ErrMalformed)
	errKeyID           = fmt.Errorf("%w: kid is not a string, or empty", ErrMalformed)
	errKeyIDs          = fmt.Errorf("%w: kid in header and payload differ", ErrMalformed)
	errPayload         = fmt.Errorf("%w: payload is not a strict JSON object", ErrMalformed)
	errSubject         = fmt.Errorf("%w: sub is not a video id", ErrMalformed)
	errNoExpiry        = fmt.Errorf("%w: no exp", ErrMalformed)
	errDate            = fmt.Errorf("%w: exp or nbf is not a whole number of seconds, 0 to 2^53", ErrMalformed)
	errDownload        = fmt.Errorf("%w: downloadable is not true or false", ErrMalformed)
	errAlgorithm       = fmt.Errorf("%w: only RS256 is", ErrAlgorithm)
	errNoKeyID         = fmt.Errorf("%w: the token names none", ErrKeyUnknown)
	errSignatureLength = fmt.Errorf("%w: wrong length", ErrSignature)
)
