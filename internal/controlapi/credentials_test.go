package controlapi

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// withCredentials sets two secrets and two pairs.
func withCredentials(config *Config) {
	config.BearerTokens = []string{"first-secret", "second-secret"}
	config.AuthKeys = []AuthKey{{"a@example.com", "key-a"}, {"b@example.com", "key-b"}}
}

// A1: a request is authorized if and only if it has a configured credential, byte by
// byte, in the one header for it. A header in the fuzz input is a line `Name:value`.
func FuzzCredentials(f *testing.F) {
	config := Config{Logger: zap.NewNop(), Resolve: verbatim}
	withCredentials(&config)
	known := must(newCredentials(config))
	digest := sha256.Sum256([]byte("first-secret"))
	const bearer, email, key = "Authorization:Bearer first-secret", "X-Auth-Email:a@example.com", "X-Auth-Key:key-a"
	for _, header := range []string{
		bearer, "Authorization:Bearer second-secret", email + "\n" + key, "X-Auth-Email:b@example.com\nX-Auth-Key:key-b",
		bearer + "\n" + email + "\n" + key, bearer + "\n" + email + "\nX-Auth-Key:x", "Authorization:Bearer x\n" + email + "\n" + key, // as SDKs send them
		"", "Authorization:", "Authorization:Bearer", "Authorization:Bearer ", "Authorization:Bearer third-secret", // no secret, or another one
		bearer[:len(bearer)-1], "Authorization:Bearer f", bearer + "s", bearer + " ", bearer + "\x00", bearer + "\u00a0", // a part, or more
		"Authorization:Bearer  first-secret", "Authorization:Bearer\tfirst-secret", "Authorization:Bearerfirst-secret", "Authorization:first-secret",
		"Authorization:Bearer FIRST-SECRET", "Authorization:bearer first-secret", "Authorization:BEARER first-secret", "Authorization:Basic first-secret",
		"Authorization:Token first-secret", "Authorization:Bearer %66irst-secret", `Authorization:Bearer "first-secret"`, // other spellings
		bearer + ", Bearer x", bearer + " second-secret", bearer + ",second-secret", // lists
		bearer + "\nAuthorization:Bearer x", "Authorization:Bearer x\n" + bearer, bearer + "\n" + bearer, // two lines
		"Authorization:Bearer " + hex.EncodeToString(digest[:]), "Authorization:Bearer " + string(digest[:]), `Authorization:Bearer a@example.com" "key-a`, "Authorization:Bearer a@example.com key-a",
		"Authorization:Bearer a@example.com\x00key-a", "Authorization:Bearer key-a", email + "\nAuthorization:Bearer key-a", email + "\nX-Auth-Key:first-secret", // in the wrong place
		"Cookie:Authorization=Bearer first-secret; token=first-secret", "X-Auth-User-Service-Key:first-secret\nProxy-Authorization:Bearer first-secret",
		email, key, "X-Auth-Email:\nX-Auth-Key:", email + "\nX-Auth-Key:", email + "\nX-Auth-Key:key-", // half a pair
		email + "\nX-Auth-Key:key-b", "X-Auth-Email:A@example.com\n" + key, "X-Auth-Email:c@example.com\n" + key, // of another pair
		email + "\n" + email + "\n" + key, email + "\nX-Auth-Email:b@example.com\n" + key, email + "\nX-Auth-Key:x\n" + key, email + "\n" + key + "\nX-Auth-Key:x",
		"X-Auth-Email:key-a\nX-Auth-Key:a@example.com", "X-Auth-Email:a@example.comk\nX-Auth-Key:ey-a", email + "\x00key-a\nX-Auth-Key:",
	} {
		f.Add(header)
	}
	f.Fuzz(func(t *testing.T, text string) {
		header := make(http.Header)
		for line := range strings.SplitSeq(text, "\n") {
			name, value, _ := strings.Cut(line, ":")
			header[http.CanonicalHeaderKey(name)] = append(header[http.CanonicalHeaderKey(name)], value)
		}
		is := func(name, value string) bool { return slices.Equal(header[name], []string{value}) }
		want := is("Authorization", "Bearer first-secret") || is("Authorization", "Bearer second-secret") ||
			is("X-Auth-Email", "a@example.com") && is("X-Auth-Key", "key-a") || is("X-Auth-Email", "b@example.com") && is("X-Auth-Key", "key-b")
		if got := known.allow(header); got != want {
			t.Errorf("%q is authorized: %t, want %t", text, got, want)
		}
		if (&credentials{}).allow(header) {
			t.Errorf("%q is authorized without a configured secret", text)
		}
	})
}

// A1: a refused client learns nothing about the reason, neither from the body nor from
// a header, whatever path it asks for.
func TestRefusedCallsLookTheSame(t *testing.T) {
	t.Parallel()
	c := control(t, withCredentials)
	var want reply
	for i, header := range []http.Header{
		{},
		{"Authorization": {"Bearer x"}},
		{"Authorization": {"Bearer first-secre"}},
		{"Authorization": {"Basic x"}},
		{"X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"x"}},
		{"X-Auth-Email": {"nobody"}, "X-Auth-Key": {"x"}},
	} {
		for _, path := range []string{"keys", "keys?token=first-secret&api_token=first-secret", "nothing/there", "../..", "/client/v4/x"} {
			a := c.call(t, "POST", path, "{", from(fmt.Sprintf("192.0.2.%d", i)), func(r *http.Request) { r.Header = header.Clone() })
			if want.status == 0 {
				want = a
			}
			wantReply(t, path, a, 401, codeCredentials)
			if a.raw != want.raw || fmt.Sprint(a.header) != fmt.Sprint(want.header) {
				t.Errorf("%s with %v = %s %v, want %s %v", path, header, a.raw, a.header, want.raw, want.header)
			}
		}
	}
	a := c.call(t, "GET", "keys", "", without("Authorization"), with("X-Auth-Email", "b@example.com"), with("X-Auth-Key", "key-b"))
	wantReply(t, "a call with a pair", a, 200, 0)
}

// from changes the address of the client.
func from(address string) func(*http.Request) {
	return func(r *http.Request) { r.RemoteAddr = net.JoinHostPort(address, "1234") }
}

// A secret that no header can carry, or a config without one, is refused, and no
// error contains a secret. A short secret is accepted with a warning.
func TestSecrets(t *testing.T) {
	t.Parallel()
	bearer := func(secrets ...string) Config { return Config{BearerTokens: secrets, Resolve: verbatim} }
	pair := func(email, key string) Config {
		return Config{BearerTokens: []string{"a-long-good-secret"}, AuthKeys: []AuthKey{{email, key}}, Resolve: verbatim}
	}
	const good = "hunter2-secret-that-is-long"
	for want, configs := range map[string][]Config{ // by a part of the error
		"no credential": {{}},
		"bearer_token 1": {
			bearer(""), bearer("\n"), bearer("hunter2 secret"), bearer(" hunter2"), bearer("hunter2 "), bearer("hunter2\nsecret"), bearer("hunter2\x7f"), bearer("hunter2-é"),
		},
		"bearer_token 2":    {bearer(good, "")},
		"auth_key 1, email": {pair("", "hunter2")},
		"auth_key 1, key":   {pair("a@example.com", ""), pair("a@example.com", "hunter2\n2")},
	} {
		for _, config := range configs {
			if server, err := New(config); err == nil || server != nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("New with %q %q = %v, %v, want %q in the error, and no secret", config.BearerTokens, config.AuthKeys, server, err, want)
			}
		}
	}
	for _, tc := range []struct {
		config   Config
		send     string
		warnings int
	}{
		{bearer(good), good, 0},
		{bearer("hunter2-from-a-file\r\n"), "hunter2-from-a-file", 0},
		{bearer("hunter2-letters"), "hunter2-letters", 1},
		{bearer("hunter2-letters-"), "hunter2-letters-", 0},
		{Config{BearerTokens: []string{"hunter2", "x"}, AuthKeys: []AuthKey{{"a@b.c", "short"}, {"a@b.c", "a-key-that-is-long-enough"}}, Resolve: verbatim}, "hunter2", 3},
	} {
		core, logs := observer.New(zap.WarnLevel)
		tc.config.Logger = zap.New(core)
		server, err := New(tc.config)
		if err != nil || logs.Len() != tc.warnings || strings.Contains(fmt.Sprint(logs.All()), "hunter2") {
			t.Errorf("New with %q: %v, warnings %v, want %d without a secret", tc.config.BearerTokens, err, logs.All(), tc.warnings)
			continue
		}
		if !server.credentials.allow(http.Header{"Authorization": {"Bearer " + tc.send}}) || server.credentials.allow(http.Header{"Authorization": {"Bearer x" + tc.send}}) {
			t.Errorf("%q does not authorize, or a longer secret does", tc.send)
		}
	}
}

// A2: the time of a comparison does not depend on how much of a secret was right. A client
// that could compute the digest of its guess could learn the digest of a secret from the
// time, byte by byte, so each server has a key of its own.
func TestClientsCannotComputeDigests(t *testing.T) {
	t.Parallel()
	config := Config{BearerTokens: []string{"one-secret-of-the-tests", "other-secret-of-the-tests"}, AuthKeys: []AuthKey{{"a@example.com", "key-of-the-tests"}}, Resolve: verbatim}
	one, other := must(New(config)).credentials, must(New(config)).credentials
	if len(one.digests) != 3 {
		t.Errorf("%d digests, want one for each of 3 credentials", len(one.digests))
	}
	for digest := range one.digests {
		if _, same := other.digests[digest]; same || digest == sha256.Sum256([]byte(config.BearerTokens[0])) {
			t.Errorf("the digest %x is the same on each server", digest)
		}
	}
}

// A client usually has one IPv4 address, or any IPv6 address within a /64.
func TestClientNetwork(t *testing.T) {
	t.Parallel()
	for pair, same := range map[[2]string]bool{
		{"192.0.2.1", "192.0.2.1"}: true, {"192.0.2.1", "192.0.2.0"}: false, {"::1", "127.0.0.1"}: false,
		{"2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff"}: true, {"2001:db8::1", "2001:db8:0:1::1"}: false,
	} {
		a, b := clientNetwork(netip.MustParseAddr(pair[0])), clientNetwork(netip.MustParseAddr(pair[1]))
		if (a == b) != same {
			t.Errorf("%q are one client: %t, want %t", pair, a == b, same)
		}
	}
	if clientNetwork(netip.Addr{}) != (netip.Prefix{}) {
		t.Error("an unknown address has a network")
	}
}

// A3: the answers to wrong credentials are limited by address, also if they come at the
// same time, and the log has one warning a minute. The limit concerns no other address, and no right
// credential: an operator who shares an address with an attacker must still be able to
// revoke a key.
func TestWrongCallsFromOneAddress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := control(t, nil)
		at := func(address, secret string) reply {
			return c.call(t, "GET", "keys", "", from(address), with("Authorization", "Bearer "+secret))
		}
		guess := func(calls, answered int) {
			t.Helper()
			var limited atomic.Int64
			var wg sync.WaitGroup
			for range calls {
				wg.Go(func() {
					a := at("198.51.100.1", "guess")
					if a.status == http.StatusUnauthorized {
						return
					}
					limited.Add(1)
					wantReply(t, "a call over the limit", a, 429, codeLimited)
				})
			}
			if wg.Wait(); int(limited.Load()) != calls-answered {
				t.Errorf("of %d wrong calls, %d are over the limit, want %d", calls, limited.Load(), calls-answered)
			}
		}
		guess(2*failureBurst, failureBurst)
		wantReply(t, "a wrong call from elsewhere", at("198.51.100.2", "guess"), 401, codeCredentials)
		for range 3 * failureBurst {
			wantReply(t, "a right call", at("198.51.100.1", apiSecret), 200, 0)
		}
		for range 5 {
			<-time.After(time.Second)
			guess(3, 1)
		}
		wantWarnings := func(want int) {
			t.Helper()
			if warnings := c.logs.FilterLevelExact(zap.WarnLevel).All(); len(warnings) != want || warnings[0].ContextMap()["client_ip"] != "198.51.100.1" {
				t.Errorf("the log has the warnings %v, want %d with the address", warnings, want)
			}
		}
		wantWarnings(1)
		<-time.After(2 * failureBurst * time.Second)
		guess(2*failureBurst, failureBurst)
		wantWarnings(2)
		c.ClientAddress = func(*http.Request) netip.Addr { return netip.Addr{} }
		wantReply(t, "a right call without an address", at("198.51.100.1", apiSecret), 200, 0)
	})
}

// The attack: strangers with wrong credentials fill the log, or hide what operators do
// among their lines. Only lines of calls with a credential are all kept.
func TestStrangersLinesAreSampled(t *testing.T) {
	t.Parallel()
	core, sampled := observer.New(zapcore.DebugLevel)
	c := control(t, func(config *Config) { config.SampledLogger = zap.New(core) })
	for i := range 20 {
		c.call(t, "GET", "keys", "", from(fmt.Sprintf("192.0.2.%d", i)), without("Authorization"))
	}
	c.call(t, "GET", "keys", "")
	c.call(t, "GET", "nothing/there", "")
	if sampled.Len() != 20 || c.logs.Len() != 2 {
		t.Errorf("%d lines may be left out and %d are kept, want the 20 of strangers and the two of the operator", sampled.Len(), c.logs.Len())
	}
}
