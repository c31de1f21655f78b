// Package cmcd finds the session id that a player gives itself (CTA-5004).
package cmcd

import (
	"net/http"
	"net/url"
	"strings"
)

// maxClientID is the longest session id that a player gives itself, in bytes. CTA-5004
// permits 64 characters.
const maxClientID = 128

// Session returns the session id that a player sends: in X-Playback-Session-Id, as
// AVPlayer does, or in CMCD (CTA-5004), in headers or in the query. It is "" without an id,
// and if two readers could read different ids.
func Session(h http.Header, query string) string {
	if values := h["X-Playback-Session-Id"]; len(values) == 1 && isClientID(values[0]) {
		return values[0]
	}
	if values := h["Cmcd-Session"]; len(values) == 1 {
		if sid := sessionIn(values[0]); sid != "" {
			return sid
		}
	}
	return sessionIn(parameterOf(query))
}

func isClientID(text string) bool {
	return text != "" && len(text) <= maxClientID && !strings.ContainsFunc(text, func(c rune) bool { return c <= ' ' || c > '~' })
}

// parameterOf returns the decoded parameter CMCD of a query, "" unless there is exactly one.
func parameterOf(query string) (cmcd string) {
	found := 0
	for parameter := range strings.SplitSeq(query, "&") {
		if !IsParameter(parameter) {
			continue
		}
		_, value, _ := strings.Cut(parameter, "=")
		text, err := url.QueryUnescape(value)
		if found++; err != nil || found > 1 {
			return ""
		}
		cmcd = text
	}
	return cmcd
}

// sessionIn returns the value of sid in CMCD, "" if the whole is malformed or has two.
func sessionIn(cmcd string) (sid string) {
	for cmcd != "" {
		end := strings.IndexAny(cmcd, "=,")
		if end < 0 {
			end = len(cmcd)
		}
		key, rest := cmcd[:end], cmcd[end:]
		if key == "" || strings.Trim(key, keyCharacters) != "" {
			return ""
		}
		value, isString, ok := "", false, true
		if strings.HasPrefix(rest, "=") {
			value, rest, isString, ok = valueOf(rest[1:])
		}
		if key == "sid" && ok {
			ok = isString && sid == "" && isClientID(value)
			sid = value
		}
		if !ok || rest != "" && (rest[0] != ',' || len(rest) == 1) {
			return ""
		}
		cmcd = strings.TrimLeft(strings.TrimPrefix(rest, ","), " ")
	}
	return sid
}

const keyCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"

// valueOf reads the value at the start of text: a string in quotes, in which a backslash
// escapes a quote or itself, or a number or a word.
func valueOf(text string) (value, rest string, isString, ok bool) {
	if !strings.HasPrefix(text, `"`) {
		end := strings.IndexByte(text, ',')
		if end < 0 {
			end = len(text)
		}
		return text[:end], text[end:], false, end > 0 && !strings.ContainsAny(text[:end], `"\= `)
	}
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		switch c := text[i]; c {
		case '"':
			return b.String(), text[i+1:], true, true
		case '\\':
			if i++; i == len(text) || text[i] != '"' && text[i] != '\\' {
				return "", "", true, false
			}
			b.WriteByte(text[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", "", true, false
}

func IsParameter(parameter string) bool {
	name, _, _ := strings.Cut(parameter, "=")
	if strings.Contains(name, "%") {
		name, _ = url.QueryUnescape(name)
	}
	return name == "CMCD"
}
