package signedplayback

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/signed-playback/caddy-signed-playback/internal/controlapi"
)

// The history has the numbers of a model that keeps every refusal, also where the clock skips
// hours and days.
func TestRefusalHistory(t *testing.T) {
	t.Parallel()
	type refused struct {
		result result
		reason reason
		at     time.Time
	}
	random := rand.New(rand.NewPCG(19, 1))
	h := &refusalHistory{began: testTime.Add(30 * time.Minute)}
	now, all := h.began, []refused(nil)
	for range 2000 {
		now = now.Add(time.Duration(random.Int64N(int64(time.Hour))))
		if random.IntN(100) == 0 {
			now = now.Add(time.Duration(random.Int64N(int64(60 * time.Hour))))
		}
		one := refused{pick(random, []result{resultRefused, resultWouldRefuse}), pick(random, reasons[:]), now}
		h.count(one.result, one.reason, one.at)
		all = append(all, one)

		first := now.Truncate(time.Hour).Add(-23 * time.Hour)
		want := controlapi.Refusals{Since: first}
		if h.began.After(first) {
			want.Since = h.began
		}
		for i := range 24 {
			want.Hours = append(want.Hours, controlapi.RefusalHour{
				Start: first.Add(time.Duration(i) * time.Hour), Refused: map[string]uint64{}, WouldRefuse: map[string]uint64{},
			})
		}
		for _, one := range all {
			if one.at.Before(first) {
				continue
			}
			hour := want.Hours[one.at.Sub(first)/time.Hour]
			if one.result == resultRefused {
				hour.Refused[string(one.reason)]++
			} else {
				hour.WouldRefuse[string(one.reason)]++
			}
		}
		if diff := cmp.Diff(want, h.last(now)); diff != "" {
			t.Fatalf("at %s (-want +got):\n%s", now, diff)
		}
	}
}

// A machine whose clock is not set, because it has no battery, begins in 1970 or before.
func TestRefusalHistoryAroundTheEpoch(t *testing.T) {
	t.Parallel()
	h, now := new(refusalHistory), time.Unix(0, 0).Add(-30*time.Hour)
	for range 60 {
		h.count(resultRefused, reasonPathInvalid, now)
		hours := h.last(now).Hours
		if n := hours[len(hours)-1].Refused[string(reasonPathInvalid)]; n == 0 {
			t.Errorf("at %s: %v", now, hours)
		}
		now = now.Add(time.Hour)
	}
}

// The history counts each refusal by its reason. It counts neither allowed requests nor preflights.
func TestRefusalsAreCountedByReason(t *testing.T) {
	t.Parallel()
	g := newGate(t, new(App), new(Gate))
	g.app.metrics = newMetrics()
	for path, times := range map[string]int{"/demo/x.ts": 3, "/a//b": 2, "/" + plainToken() + "/x.ts": 5} {
		for range times {
			ask(t, g, requestFor(t, path, nil))
		}
	}
	ask(t, g, requestFor(t, "/demo/x.ts", method("OPTIONS")))
	hours := g.app.metrics.refusals.last(time.Now()).Hours
	refused := make(map[string]uint64)
	for _, hour := range hours {
		for why, n := range hour.Refused {
			refused[why] += n
		}
	}
	if diff := cmp.Diff(map[string]uint64{"token_required": 3, "path_invalid": 2}, refused); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The description of the API knows every reason, and no other.
func TestOpenAPIHasEveryReason(t *testing.T) {
	t.Parallel()
	var file struct {
		Components struct {
			Schemas struct{ Reason struct{ Enum []reason } }
		}
	}
	if err := json.Unmarshal(must(os.ReadFile("internal/controlapi/openapi.json")), &file); err != nil {
		t.Fatal(err)
	}
	sorted := cmpopts.SortSlices(func(a, b reason) bool { return a < b })
	if diff := cmp.Diff(reasons[:], file.Components.Schemas.Reason.Enum, sorted); diff != "" {
		t.Errorf("(-gate +file):\n%s", diff)
	}
}
