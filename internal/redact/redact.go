// Package redact removes tokens and the session ids of URLs from text. A token opens its
// video to everybody who reads it, so it must not appear in a log, a trace or an error
// message, and with a session somebody plays in the name of another.
//
// It recognizes tokens by their characters: anywhere in a text, escaped or cut
// short. In doubt it redacts too much: a long run of base64url counts as a part
// of a token.
package redact

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/signed-playback/caddy-signed-playback/internal/percent"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
)

// TokenID returns the name of a token in logs, from which nobody can compute
// the token: the first 16 hexadecimal digits of its SHA-256. It is "" for "".
func TokenID(token string) string {
	if token == "" {
		return ""
	}
	digest := sha256.Sum256([]byte(token))
	return hex.EncodeToString(digest[:8])
}

// Tokens returns the text with each token replaced by its id, and each session by the id
// that the control API has for it. Escapes in a run
// of characters that contains a token are decoded. A text without a token is
// returned unchanged and without an allocation.
func Tokens(text string) string { return redactRuns(text, decodeEscapes) }

// Line returns an encoded line of a log with each token replaced by its id. It
// decodes no escapes in what it keeps, because decoded quotes or line breaks would
// be syntax of the encoding.
func Line(text string) string { return redactRuns(text, keepEscapes) }

// escapes says how redactRuns treats percent-encoding.
type escapes int

const (
	decodeEscapes escapes = iota // a run with an escaped token is decoded
	keepEscapes                  // a run with an escaped token is replaced as a whole
	noEscapes                    // the text is decoded already
)

// Each returns the texts, each as Tokens returns it.
func Each(texts []string) []string {
	redacted := make([]string, len(texts))
	for i, text := range texts {
		redacted[i] = Tokens(text)
	}
	return redacted
}

// Contains reports whether a text contains a token, as it is or percent-encoded. No
// text contains the token "".
func Contains(text, token string) bool {
	if token == "" || len(text) < len(token) {
		return false
	}
	return strings.Contains(text, token) || strings.Contains(text, "%") && strings.Contains(unescape(text), token)
}

// redactRuns replaces runs of token characters that are tokens, as they are or once
// they are decoded, and sessions. What replaces one touches no other characters of a token:
// together they could look like one, and would be replaced by another id the next time.
func redactRuns(text string, escaped escapes) string {
	var redacted strings.Builder
	copied := 0 // the length of the prefix of text that redacted has
	for start := 0; start < len(text); start++ {
		end := start
		for end < len(text) && isTokenCharacter(text[end]) {
			end++
		}
		if end == start {
			continue
		}
		begin := len(strings.TrimRight(text[:start], sessions.Prefix))
		replacement, length := replacementFor(text[begin:start], text[start:end], escaped)
		if length > 0 {
			redacted.WriteString(text[copied:begin])
			if begin < start && begin > 0 && isTokenCharacter(text[begin-1]) {
				redacted.WriteByte(' ')
			}
			redacted.WriteString(replacement)
			copied = start + length
		}
		start = end
	}
	if copied == 0 {
		return text
	}
	redacted.WriteString(text[copied:])
	return redacted.String()
}

// replacementFor returns the text that replaces the beginning of a run of token characters,
// and its length, 0 if the run stays. lead consists of the prefixes of sessions before the
// run, and is replaced too.
func replacementFor(lead, run string, escaped escapes) (replacement string, length int) {
	if replacement, ok := tokenIn(lead, run, escaped); ok {
		return replacement, len(run)
	}
	length = strings.IndexAny(run, ".%+")
	if length < 0 {
		length = len(run)
	}
	// A session may be cut off. Its first half tells nobody how to play.
	if lead == "" || length <= sessions.TextLength/2 {
		return "", 0
	}
	if key, ok := sessions.KeyIn(run[:length]); ok {
		return key.ID().String(), length
	}
	return TokenID(run[:length]), length
}

// isTokenCharacter accepts base64url, dots, percent escapes, and of standard
// base64 the character that separates nothing in URLs.
func isTokenCharacter(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		c == '-' || c == '_' || c == '.' || c == '%' || c == '+'
}

const (
	// headerStart is `{"`, with which every JOSE header begins, in base64.
	headerStart = "eyJ"

	// maxName is the length of the longest name that is not taken for a part of
	// a token: a SHA-512 in hexadecimal digits. A signature is longer.
	maxName = 128

	// minRedacted is the length of the shortest run that is replaced.
	minRedacted = 16
)

// tokenIn returns the text that replaces a lead and a run. It is ok if the run is a token, or
// a part of one that would help to guess it.
func tokenIn(lead, run string, escaped escapes) (replacement string, ok bool) {
	if len(run) < minRedacted {
		return "", false
	}
	if escaped != noEscapes && strings.Contains(run, "%") {
		plain := unescape(run)
		redacted := redactRuns(plain, noEscapes)
		switch {
		case redacted == plain:
			return "", false
		case escaped == keepEscapes:
			return lead + TokenID(run), true
		case lead != "":
			redacted = redactRuns(lead+plain, noEscapes)
		}
		return redacted, true
	}
	if strings.Contains(run, headerStart) && strings.Contains(run, ".") {
		return lead + TokenID(run), true
	}
	for segment := range strings.SplitSeq(run, ".") {
		if len(segment) > maxName {
			return lead + TokenID(run), true
		}
	}
	return "", false
}

// unescape decodes percent-encoding, also of percent-encoding, and keeps
// invalid escapes: a client that adds one must not get its token past the
// filter. Programs that read logs do not decode more often than maxDepth.
func unescape(s string) string {
	const maxDepth = 4
	for range maxDepth {
		plain := make([]byte, 0, len(s))
		for i := 0; i < len(s); i++ {
			c, ok := percent.Octet(s[i:])
			if ok {
				i += 2
			} else {
				c = s[i]
			}
			plain = append(plain, c)
		}
		if len(plain) == len(s) {
			break
		}
		s = string(plain)
	}
	return s
}
