package controlapi

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The history has the numbers of a model that keeps every refusal, also where the clock skips
// hours and days.
func TestRefusalHistory(t *testing.T) {
	t.Parallel()
	type refused struct {
		reason       string
		onlyReported bool
		at           time.Time
	}
	random := rand.New(rand.NewPCG(19, 1))
	h := &RefusalHistory{Began: time.Unix(1_800_000_000, 0).Add(30 * time.Minute)}
	now, all := h.Began, []refused(nil)
	for range 400 {
		now = now.Add(time.Duration(random.Int64N(int64(time.Hour))))
		if random.IntN(20) == 0 {
			now = now.Add(time.Duration(random.Int64N(int64(60 * time.Hour))))
		}
		one := refused{[]string{"path_invalid", "rule_blocked", "token_expired"}[random.IntN(3)], random.IntN(2) == 0, now}
		h.Count(one.reason, one.onlyReported, one.at)
		all = append(all, one)

		first := now.Truncate(time.Hour).Add(-23 * time.Hour)
		want := Refusals{Since: first}
		if h.Began.After(first) {
			want.Since = h.Began
		}
		for i := range 24 {
			want.Hours = append(want.Hours, RefusalHour{
				Start: first.Add(time.Duration(i) * time.Hour), Refused: map[string]uint64{}, WouldRefuse: map[string]uint64{},
			})
		}
		for _, one := range all {
			if one.at.Before(first) {
				continue
			}
			hour := want.Hours[one.at.Sub(first)/time.Hour]
			if !one.onlyReported {
				hour.Refused[one.reason]++
			} else {
				hour.WouldRefuse[one.reason]++
			}
		}
		if diff := cmp.Diff(want, h.Last(now)); diff != "" {
			t.Fatalf("at %s (-want +got):\n%s", now, diff)
		}
	}
}

// A machine whose clock is not set, because it has no battery, begins in 1970 or before.
func TestRefusalHistoryAroundTheEpoch(t *testing.T) {
	t.Parallel()
	h, now := new(RefusalHistory), time.Unix(0, 0).Add(-30*time.Hour)
	for range 60 {
		h.Count("path_invalid", false, now)
		hours := h.Last(now).Hours
		if n := hours[len(hours)-1].Refused["path_invalid"]; n == 0 {
			t.Errorf("at %s: %v", now, hours)
		}
		now = now.Add(time.Hour)
	}
}
