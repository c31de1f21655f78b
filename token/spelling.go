package token

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// spelling is how a claim is spelled.
type spelling struct {
	claim  string
	folded string
	err    error // for a name that is nearly the same
}

func spellingOf(claim, name string) spelling {
	err := fmt.Errorf("%w: a claim is named almost like %s and would be ignored: correct or rename it", ErrMalformed, claim)
	return spelling{claim, strings.ToLower(name), err}
}

var (
	// claimSpellings are the claims that a gate reads, except the one that names the
	// viewer, and a name that people write for one of them.
	claimSpellings = func() (list []spelling) {
		for _, claim := range []string{
			"sub", "exp", "nbf", "kid", "accessRules", "downloadable", "aud", "iss",
			"jti", "iat", "climit", "startBy", "flags",
		} {
			list = append(list, spellingOf(claim, claim))
		}
		return append(list, spellingOf("nbf", "notBefore"))
	}()
	defaultViewerClaim, _ = NewViewerClaim("uid")
	// flagSpellings are the members of the claim `flags`.
	flagSpellings = []spelling{spellingOf("original", "original")}
)

// ViewerClaim is a name for the claim that names the viewer. The zero value is `uid`.
type ViewerClaim struct {
	name string
	all  []spelling // of the claims that a gate reads
}

// NewViewerClaim returns the ViewerClaim of a name: 1 to 128 bytes of UTF-8, like
// "email" or "https://example.com/viewer", that are not, nor almost, the name of
// another claim that a gate reads, like "sub" or "jti".
func NewViewerClaim(name string) (ViewerClaim, error) {
	if name == "" || len(name) >= longestName || !utf8.ValidString(name) {
		return ViewerClaim{}, fmt.Errorf("%q: want the name of a claim, 1 to %d bytes of UTF-8", name, longestName-1)
	}
	for _, other := range claimSpellings {
		if name == other.claim || checkSpelling([]byte(name), []spelling{other}) != nil {
			return ViewerClaim{}, fmt.Errorf("%q: the claim %s has another meaning; name a claim that names the viewer", name, other.claim)
		}
	}
	v := ViewerClaim{name, claimSpellings}
	if folded := fold(nil, []byte(name)); len(folded) > 0 {
		v.all = append(slices.Clip(v.all), spellingOf(name, string(folded)))
	}
	return v, nil
}

// Name returns the name of the claim.
func (v ViewerClaim) Name() string { return cmp.Or(v.name, defaultViewerClaim.name) }

func (v ViewerClaim) spellings() []spelling {
	if v.name == "" {
		return defaultViewerClaim.all
	}
	return v.all
}

// checkSpelling refuses the name of a claim that is almost one of claims. A signer
// that writes `accessrules` or `NBF` means to restrict a token, and would restrict
// nothing. These names are almost the same:
//
//   - names that differ in case, width, accents, or in characters that are neither
//     letters nor digits: NBF, access_rules, "start by", ｎｂｆ
//   - names of which at most half of the letters are of another script: aссessRules
//     with two Cyrillic letters
//   - names with two neighbours swapped: nfb, accessRulse
//   - if the claim has at least five letters, names with one letter more, less or
//     other: accessRule, acessRules
func checkSpelling(name []byte, claims []spelling) error {
	var buffer [longestName]byte
	folded := fold(buffer[:0], name)
	for i := range claims {
		switch {
		case string(name) == claims[i].claim:
			return nil
		case folded != nil && almostSame(folded, claims[i].folded):
			return claims[i].err
		}
	}
	return nil
}

const (
	// longestName is the length of the longest claim that may name the viewer, and one
	// letter more.
	longestName = 128 + 1
	// shortestTypo is the length of a claim from which on another letter is a
	// typing error. The neighbours of a shorter one are claims too: sid, oid.
	shortestTypo = len("flags")
	// foreign stands for a letter of another script in a folded name.
	foreign = '?'
)

// fold appends the letters and digits of a name to empty, in lower case. It
// returns nil for a name that is longer than a claim, or in which most letters
// are of another script.
func fold(empty, name []byte) []byte {
	if !norm.NFKD.IsNormal(name) {
		name = norm.NFKD.Bytes(name)
	}
	folded, foreigners := empty, 0
	for _, r := range string(name) {
		switch {
		case !unicode.IsLetter(r) && !unicode.IsDigit(r):
			continue
		case len(folded) == longestName:
			return nil
		case r >= utf8.RuneSelf:
			foreigners++
			r = foreign
		}
		folded = append(folded, byte(unicode.ToLower(r)))
	}
	if 2*foreigners > len(folded) {
		return nil
	}
	return folded
}

// almostSame compares a folded name with that of a claim.
func almostSame(name []byte, claim string) bool {
	typos := len(claim) >= shortestTypo
	same := func(a, b byte) bool { return a == b || a == foreign }
	for len(name) > 0 && len(claim) > 0 && same(name[0], claim[0]) {
		name, claim = name[1:], claim[1:]
	}
	for len(name) > 0 && len(claim) > 0 && same(name[len(name)-1], claim[len(claim)-1]) {
		name, claim = name[:len(name)-1], claim[:len(claim)-1]
	}
	switch {
	case len(name)+len(claim) == 0:
		return true
	case len(name) == 2 && len(claim) == 2:
		return same(name[0], claim[1]) && same(name[1], claim[0])
	}
	return typos && len(name) <= 1 && len(claim) <= 1
}
