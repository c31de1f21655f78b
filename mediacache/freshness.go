package mediacache

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// freshness is how long and under which conditions a response may be used again.
type freshness struct {
	lifetime             time.Duration // counted from when the origin made the response
	staleWhileRevalidate time.Duration // after lifetime, RFC 5861 section 3
	staleIfError         time.Duration // after lifetime, RFC 5861 section 4
}

// maxDelta is what a larger number of seconds counts as (RFC 9111 section 1.2.2).
const maxDelta = 1<<31 - 1

// directives are the members of Cache-Control fields by their names in lower case, with the
// seconds of their arguments.
type directives map[string]time.Duration

// parseDirectives reads Cache-Control fields. An argument that is no number of
// seconds, and a directive that appears twice with different arguments, count as
// zero seconds, as RFC 9111 section 4.2.1 encourages.
func parseDirectives(fields []string) directives {
	d := directives{}
	for _, field := range fields {
		for name, argument := range members(field) {
			name, seconds := strings.ToLower(name), parseSeconds(argument)
			if earlier, repeated := d[name]; repeated && earlier != seconds {
				seconds = 0
			}
			d[name] = seconds
		}
	}
	return d
}

// has reports whether one of the directives is there. Names of fields in the argument of
// `private` or `no-cache` are ignored, so less is kept than could be.
func (d directives) has(names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		_, found := d[name]
		return found
	})
}

// parseSeconds parses delta-seconds (RFC 9111 section 1.2.2). Anything else is 0.
func parseSeconds(text string) time.Duration {
	n, _ := parseDigits(text)
	return time.Duration(min(n, maxDelta)) * time.Second
}

// parseDigits parses a decimal number without a sign. A larger one than 2^63-1 counts as that.
func parseDigits(text string) (n int64, ok bool) {
	number, err := strconv.ParseUint(text, 10, 63)
	return int64(number), err == nil || errors.Is(err, strconv.ErrRange)
}

// members yields the comma-separated members of a field, with their arguments. A
// quoted argument may contain commas.
func members(field string) func(yield func(name, argument string) bool) {
	return func(yield func(string, string) bool) {
		for field != "" {
			var member string
			member, field = cutMember(field)
			name, argument, _ := strings.Cut(member, "=")
			name, argument = strings.Trim(name, " \t"), strings.Trim(argument, " \t")
			if unquoted, ok := strings.CutPrefix(argument, `"`); ok {
				argument = strings.TrimSuffix(unquoted, `"`)
			}
			if name != "" && !yield(name, argument) {
				return
			}
		}
	}
}

func cutMember(field string) (member, rest string) {
	quoted := false
	for i := 0; i < len(field); i++ {
		switch c := field[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			return field[:i], field[i+1:]
		}
	}
	return field, ""
}

// keepable lists the statuses that the cache keeps.
func keepable(status int) bool {
	switch status {
	case http.StatusOK, http.StatusNotFound, http.StatusGone,
		http.StatusMovedPermanently, http.StatusPermanentRedirect,
		http.StatusFound, http.StatusTemporaryRedirect:
		return true
	}
	return false
}

// isNegative reports whether a status says that there is nothing.
func isNegative(status int) bool { return status == http.StatusNotFound || status == http.StatusGone }

// isShareable reports whether a response to a request without credentials may be
// given to all who ask for the same now, even if it is not kept for later.
func isShareable(status int, header http.Header, d directives) bool {
	if d.has("no-store", "private") || status == http.StatusPartialContent {
		return false
	}
	for _, field := range header["Content-Encoding"] {
		if !strings.EqualFold(field, "identity") {
			return false
		}
	}
	for _, field := range header["Vary"] {
		for name := range members(field) {
			if !strings.EqualFold(name, "Accept-Encoding") {
				return false
			}
		}
	}
	return true
}

// freshnessOf applies RFC 9111 section 4.2.1, and byDefault where the origin
// says nothing. A manifest is never used when it is stale.
func freshnessOf(status int, header http.Header, d directives, byDefault time.Duration, isManifest bool, now time.Time) (f freshness, keep bool) {
	explicit, isExplicit := explicitLifetime(header, d, now)
	switch {
	case !keepable(status), d.has("no-store", "private"):
		return freshness{}, false
	case d.has("no-cache"):
		explicit, isExplicit = 0, true
	case !isExplicit && (status == http.StatusFound || status == http.StatusTemporaryRedirect):
		return freshness{}, false
	case !isExplicit:
		explicit = byDefault
	}
	f.lifetime = explicit
	if !isManifest && status == http.StatusOK && !d.has("must-revalidate", "proxy-revalidate", "no-cache", "s-maxage") {
		f.staleWhileRevalidate, f.staleIfError = d["stale-while-revalidate"], d["stale-if-error"]
	}
	hasValidator := len(header["Etag"]) > 0 || len(header["Last-Modified"]) > 0
	return f, f.lifetime > 0 || f.staleWhileRevalidate > 0 || f.staleIfError > 0 || isExplicit && hasValidator
}

func explicitLifetime(header http.Header, d directives, now time.Time) (time.Duration, bool) {
	for _, name := range []string{"s-maxage", "max-age"} {
		if lifetime, found := d[name]; found {
			return lifetime, true
		}
	}
	expires := header["Expires"]
	at, ok := parseExpires(expires)
	if !ok {
		return 0, len(expires) > 0
	}
	date, err := http.ParseTime(header.Get("Date"))
	if err != nil {
		date = now
	}
	return max(at.Sub(date), 0), true
}

// parseExpires parses a date in one of the three forms of RFC 9110 section 5.6.7, byte
// for byte: a date that another cache may read otherwise is in the past.
func parseExpires(fields []string) (time.Time, bool) {
	at, ok := parseDate(fields)
	if !ok {
		return time.Time{}, false
	}
	for _, layout := range []string{http.TimeFormat, "Monday, 02-Jan-06 15:04:05 GMT", time.ANSIC} {
		if at.UTC().Format(layout) == fields[0] {
			return at, true
		}
	}
	return time.Time{}, false
}

// ageOnArrival is the age that a response has when it arrives: by what caches on
// the way say, and by its Date (RFC 9111 section 4.2.3).
func ageOnArrival(header http.Header, asked, arrived time.Time) time.Duration {
	first, _, _ := strings.Cut(header.Get("Age"), ",") // RFC 9111 section 5.1
	age := parseSeconds(strings.TrimRight(first, " \t"))
	age += arrived.Sub(asked)
	if date, err := http.ParseTime(header.Get("Date")); err == nil {
		// Date has whole seconds, so a response that was just made may look a second old.
		age = max(age, arrived.Sub(date)-time.Second)
	}
	return max(age, 0)
}
