package mediacache

import (
	"net/http"
	"strings"
	"time"
)

// evaluate applies the preconditions of a request to an object (RFC 9110 section
// 13.2.2). It returns 304, 412, or 0 to go on.
func (v *visit) evaluate(o *object) int {
	h := v.r.Header
	if fields := h["If-Match"]; len(fields) > 0 {
		if !matches(fields, o.etag, true) {
			return http.StatusPreconditionFailed
		}
	} else if since, ok := parseDate(h["If-Unmodified-Since"]); ok && !o.modified.IsZero() && o.modified.After(since) {
		return http.StatusPreconditionFailed
	}
	if fields := h["If-None-Match"]; len(fields) > 0 {
		if matches(fields, o.etag, false) {
			return http.StatusNotModified
		}
		return 0
	}
	if since, ok := parseDate(h["If-Modified-Since"]); ok && !o.modified.IsZero() && !o.modified.After(since) {
		return http.StatusNotModified
	}
	return 0
}

func parseDate(fields []string) (time.Time, bool) {
	if len(fields) != 1 {
		return time.Time{}, false
	}
	at, err := http.ParseTime(fields[0])
	return at, err == nil
}

// matches compares entity tags (RFC 9110 section 8.8.3.2).
func matches(fields []string, etag string, strongly bool) bool {
	for _, field := range fields {
		if strings.TrimSpace(field) == "*" {
			return true
		}
		if etag == "" {
			return false
		}
		for field != "" {
			var member string
			member, field = cutMember(field)
			member = strings.Trim(member, " \t")
			if strongly && member == etag && !isWeak(etag) {
				return true
			}
			if !strongly && strings.TrimPrefix(member, "W/") == strings.TrimPrefix(etag, "W/") {
				return true
			}
		}
	}
	return false
}
