package command

import (
	"fmt"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/signed-playback/caddy-signed-playback/internal/replay"
)

// relativeTime shows a time with its distance from now.
func relativeTime(t, now time.Time) string {
	distance := t.Sub(now).Round(time.Second)
	if distance < 0 {
		return fmt.Sprintf("%s (%s ago)", t.UTC().Format(time.RFC3339), replay.InWords(-distance))
	}
	return fmt.Sprintf("%s (in %s)", t.UTC().Format(time.RFC3339), replay.InWords(distance))
}

// parseTime reads a duration from now, Unix seconds or RFC 3339.
func parseTime(text string, now time.Time) (time.Time, error) {
	if duration, err := caddy.ParseDuration(text); err == nil {
		return now.Add(duration), nil
	}
	if seconds, err := strconv.ParseInt(text, 10, 64); err == nil {
		const year2001, year5138 = 1_000_000_000, 100_000_000_000
		switch {
		case seconds < year2001:
			return time.Time{}, fmt.Errorf("%q: as Unix seconds this is before 2001; for a duration write %ss", text, text)
		case seconds > year5138:
			return time.Time{}, fmt.Errorf("%q: as Unix seconds this is after 5138; if it is in milliseconds, leave out the last three digits", text)
		}
		return time.Unix(seconds, 0), nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	return time.Time{}, fmt.Errorf("%q: give a duration like 1h, Unix seconds, or a time like 2030-01-31T12:00:00Z", text)
}
