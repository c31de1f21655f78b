package controlapi

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The gate gets the request that the body describes, and a request that it cannot be is refused.
// Neither an answer nor the log has the URL.
func TestExplainBodies(t *testing.T) {
	t.Parallel()
	const secret = "https://media.example.com/eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJkZW1vIn0.c2ln/x.ts"
	var asked ExplainedRequest
	c := control(t, func(config *Config) {
		config.Explain = func(_ context.Context, r ExplainedRequest) (any, error) {
			if asked = r; r.Origin == "unknown" {
				return nil, errors.New(`no gate for "unknown"`)
			}
			return map[string]bool{"allowed": true}, nil
		}
	})
	own := ExplainedRequest{URL: secret, IP: "203.0.113.7", At: testTime}
	for body, want := range map[string]*ExplainedRequest{
		`{"url":"` + secret + `"}`: &own,
		`{"url":"` + secret + `","ip":"::1","origin":"https://a.example","referer":"https://a.example/p","at":"2030-01-02T03:04:05+01:00"}`: {
			secret, "::1", "https://a.example", "https://a.example/p", time.Date(2030, 1, 2, 2, 4, 5, 0, time.UTC),
		},
		`{"url":"` + secret + `","at":1800000000}`:       nil,
		`{"url":"` + secret + `","at":"` + secret + `"}`: nil,
		`{"url":["` + secret + `"]}`:                     nil,
		`{"url":"` + secret + `","IP":"::1"}`:            nil,
		`{"url":"` + secret + `","origin":"unknown"}`:    nil,
		`["` + secret + `"]`:                             nil,
		`{"url":"` + secret:                              nil,
	} {
		asked = ExplainedRequest{}
		a := c.call(t, "POST", "explain", body)
		if want == nil {
			wantReply(t, body, a, 400, codeBadRequest)
		} else if diff := cmp.Diff(*want, asked, cmp.Comparer(time.Time.Equal)); diff != "" || string(a.result) != `{"allowed":true}` {
			t.Errorf("%s = %s (-want +got):\n%s", body, a.raw, diff)
		}
		for _, line := range c.logs.TakeAll() {
			for _, field := range line.Context {
				if strings.Contains(field.String, "eyJzdWI") {
					t.Errorf("%s: the log has %s", body, field.String)
				}
			}
		}
		if strings.Contains(a.raw, "eyJzdWI") {
			t.Errorf("%s = %s", body, a.raw)
		}
	}
}

// A client without an address must give one.
func TestExplainForNobody(t *testing.T) {
	t.Parallel()
	var asked ExplainedRequest
	c := control(t, func(config *Config) {
		config.ClientAddress = func(*http.Request) netip.Addr { return netip.Addr{} }
		config.Explain = func(_ context.Context, r ExplainedRequest) (any, error) { asked = r; return nil, nil }
	})
	if c.call(t, "POST", "explain", `{"url":"x"}`); asked.IP != "" {
		t.Errorf("the address is %q", asked.IP)
	}
}

func TestGatewayAndRefusals(t *testing.T) {
	t.Parallel()
	counted := Refusals{Since: testTime, Hours: []RefusalHour{{testTime, map[string]uint64{"token_expired": 2}, map[string]uint64{}}}}
	c := control(t, func(config *Config) {
		config.Gateway = func() (Gateway, error) { return Gateway{Version: "v1"}, nil }
		config.Refusals = func() Refusals { return counted }
	})
	for path, want := range map[string]string{
		"gateway": `{"version":"v1","publicURL":"https://media.example.com/v","gates":[],"sessions":false,"maxSession":0,"maxTokenLifetime":0,` +
			`"databases":null,"defaults":{"requireSignedURLs":true,"allowedOrigins":[],"accessRules":null}}`,
		"refusals": `{"since":"2027-01-15T08:00:00Z","hours":[{"start":"2027-01-15T08:00:00Z","refused":{"token_expired":2},"wouldRefuse":{}}]}`,
	} {
		if a := c.call(t, "GET", path, ""); string(a.result) != want {
			t.Errorf("%s = %s, want %s", path, a.raw, want)
		}
		for _, method := range []string{"POST", "DELETE"} {
			wantReply(t, method+" "+path, c.call(t, method, path, ""), 404, codeRoute)
		}
	}
	c.Config.Gateway = func() (Gateway, error) { return Gateway{}, errors.New("not the client's business") }
	if a := c.call(t, "GET", "gateway", ""); a.status != 500 || strings.Contains(a.raw, "business") {
		t.Errorf("gateway = %s", a.raw)
	}
}
