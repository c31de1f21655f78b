package integration

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// The operator's rules and schedules decide on requests through the sockets, with and without
// a token, from the config and from the control API, whose changes are in force at once.
// TestOperatorRules and TestSchedule have all combinations.
func TestOperatorRulesAndSchedule(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, nil)
	at := func(after time.Duration) string { return time.Now().Add(after).UTC().Format(time.RFC3339) }
	g := start(t, o, config{
		log: quiet, api: withAPI, global: trusting("127.0.0.1/32"), gate: "player",
		app: withCountries(t) + "\nasn_database " + testdata(t, "asn.mmdb") + "\nanonymous_database " + testdata(t, "anonymous_plus.mmdb") + `
			require_signed_urls off
			access_rules {
				allow ip.src 203.0.113.200
				block ip.anonymous vpn tor
			}
			video free {
				access_rules {
				}
			}
			video coming {
				available_from ` + at(time.Hour) + `
			}
			video ends {
				access_rules {
				}
				available_until ` + at(time.Minute) + `
			}`,
	})
	const vpn, hosting = "203.0.113.7", "127.0.0.1"
	blocked := refusedFor("rule_blocked")
	for _, tc := range []struct {
		path, ip string
		want     verdict
	}{
		{"/open/seg.ts", vpn, blocked},
		{"/open/seg.ts", hosting, plays},
		{segment(mint(t, "open", withRules(`[{"type":"any","action":"allow"}]`))), vpn, blocked},
		{notIn(t, "GB"), "203.0.113.200", blocked}, // which the operator's first rule allows
		{"/free/seg.ts", vpn, plays},
		{"/coming/seg.ts", hosting, refusedFor("not_available_yet")},
		{"/ends/seg.ts", vpn, plays},
	} {
		o.take()
		wantVerdict(t, g, tc.path, tc.want, "X-Forwarded-For: "+tc.ip)
		if tc.want != plays {
			o.wantUntouched(t)
		}
	}
	if got := g.get(t, "/ends/seg.ts").Header.Get("Cache-Control"); !strings.HasPrefix(got, "private, max-age=") || strings.Contains(got, "max-age=3600") {
		t.Errorf("Cache-Control = %q, want it private and over in a minute", got)
	}
	if got := string(g.get(t, "/coming/iframe").body); !strings.Contains(got, `data-refused="not_available_yet"`) {
		t.Errorf("the page before a premiere is %.200s", got)
	}
	for _, step := range []struct {
		edit     string
		vpn, own verdict // from the VPN, and from hosting in AS4200000000
	}{
		{`{"accessRules":[{"type":"ip.geoip.asnum","asn":[4200000000],"action":"block"}]}`, plays, blocked},
		{`{"accessRules":null}`, blocked, plays},
		{`{"availableUntil":"` + at(-time.Minute) + `"}`, refusedFor("no_longer_available"), refusedFor("no_longer_available")},
	} {
		g.edit(t, "edited", step.edit)
		wantVerdict(t, g, "/edited/seg.ts", step.vpn, "X-Forwarded-For: "+vpn)
		wantVerdict(t, g, "/edited/seg.ts", step.own, "X-Forwarded-For: "+hosting)
	}
	if res := g.call(t, http.MethodPost, "stream/free", `{"accessRules":[]}`); res.StatusCode != http.StatusForbidden {
		t.Errorf("the API answers %d to an edit of a video of the config, want 403", res.StatusCode)
	}
}
