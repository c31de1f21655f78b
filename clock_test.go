package signedplayback

import (
	"testing"
	"time"
	"unsafe"

	"github.com/signed-playback/caddy-signed-playback/token"
)

const year = 365 * 24 * time.Hour

// afterJump is what time.Now returns at a time, after somebody has set the clock:
// the date has moved, and the monotonic clock has not.
func afterJump(now time.Time, by time.Duration) time.Time {
	const hasMonotonic, nanosecondBits = 1 << 63, 30
	jumped := now
	wall := (*uint64)(unsafe.Pointer(&jumped)) // no other way leads to such a time
	if *wall&hasMonotonic == 0 {
		panic("the time has no monotonic part")
	}
	*wall += uint64(int64(by/time.Second)) << nanosecondBits // it wraps around as it must
	if jumped.Sub(now) != 0 || jumped.Round(0).Sub(now.Round(0)) != by.Truncate(time.Second) {
		panic("the clock has not been set")
	}
	return jumped
}

// S9 Tokens are judged by the date: none that the gate remembers is used past
// `exp` because its clock was set, be it by ten years, and none is lost because
// the clock was wrong for a while.
func TestTokensFollowTheDate(t *testing.T) {
	t.Parallel()
	base := time.Now()
	exp := time.Unix(base.Unix()+1800, 0)
	g := newGate(t, new(App), new(Gate))
	compact := signed(func(c *token.Claims) { c.NotBefore, c.ExpiresAt = exp.Add(-2*time.Hour), exp })
	for _, step := range []struct {
		name string
		now  time.Time
		want string
	}{
		{"before the clock is set", base, ""},
		{"an hour ahead", afterJump(base, time.Hour), "token_expired"},
		{"set right", base, ""},
		{"an hour back", afterJump(base, -time.Hour), ""},
		{"ten years ahead", afterJump(base, 10*year), "token_expired"},
		{"an hour back from there", afterJump(base, 10*year-time.Hour), "token_expired"},
		{"ten years back", afterJump(base, -10*year), "token_not_yet_valid"},
		{"set right again", base, ""},
		{"in the last second", afterJump(base, 1799*time.Second), ""},
		{"a second after that", afterJump(base, 1799*time.Second).Add(time.Second), "token_expired"},
	} {
		g.app.now = func() time.Time { return step.now }
		wantOutcome(t, g, requestFor(t, "/"+compact+"/x.ts", nil), step.want)
	}
}
