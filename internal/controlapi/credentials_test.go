package controlapi

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
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
	"go.uber.org/zap/zaptest/observer"
)

// withCredentials sets two secrets and two pairs.
func withCredentials(config *Config) {
	config.BearerTokens = []string{"first-secret", "second-secret"}
	config.AuthKeys = []AuthKey{{"a@example.com", "key-a"}, {"b@example.com", "key-b"}}
}

func credentialsOf(change func(*Config)) credentials {
	config := Config{Logger: zap.NewNop(), Resolve: func(text string) (string, error) { return text, nil }}
	change(&config)
	return must(newCredentials(config))
}

// A1: what authorizes, and what merely looks like it.
func TestCredentials(t *testing.T) {
	t.Parallel()
	known := credentialsOf(withCredentials)
	digest := sha256.Sum256([]byte("first-secret"))
	pair := pairDigest("a@example.com", "key-a")
	for _, tc := range []struct {
		name   string
		header http.Header
		want   bool
	}{
		{"first", http.Header{"Authorization": {"Bearer first-secret"}}, true},
		{"second", http.Header{"Authorization": {"Bearer second-secret"}}, true},
		{"first pair", http.Header{"X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"key-a"}}, true},
		{"second pair", http.Header{"X-Auth-Email": {"b@example.com"}, "X-Auth-Key": {"key-b"}}, true},
		{"both, as SDKs send them", http.Header{"Authorization": {"Bearer first-secret"}, "X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"key-a"}}, true},
		{"secret beside a wrong pair", http.Header{"Authorization": {"Bearer first-secret"}, "X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"x"}}, true},
		{"pair beside a wrong secret", http.Header{"Authorization": {"Bearer x"}, "X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"key-a"}}, true},

		{"nothing", http.Header{}, false},
		{"empty", http.Header{"Authorization": {""}}, false},
		{"scheme alone", http.Header{"Authorization": {"Bearer"}}, false},
		{"no secret", http.Header{"Authorization": {"Bearer "}}, false},
		{"wrong", http.Header{"Authorization": {"Bearer third-secret"}}, false},
		{"a part of the right one", http.Header{"Authorization": {"Bearer first-secre"}}, false},
		{"first character", http.Header{"Authorization": {"Bearer f"}}, false},
		{"more than the right one", http.Header{"Authorization": {"Bearer first-secrets"}}, false},
		{"space behind", http.Header{"Authorization": {"Bearer first-secret "}}, false},
		{"NUL behind", http.Header{"Authorization": {"Bearer first-secret\x00"}}, false},
		{"two spaces", http.Header{"Authorization": {"Bearer  first-secret"}}, false},
		{"tab", http.Header{"Authorization": {"Bearer\tfirst-secret"}}, false},
		{"no space", http.Header{"Authorization": {"Bearerfirst-secret"}}, false},
		{"in capitals", http.Header{"Authorization": {"Bearer FIRST-SECRET"}}, false},
		{"bearer", http.Header{"Authorization": {"bearer first-secret"}}, false},
		{"Basic", http.Header{"Authorization": {"Basic first-secret"}}, false},
		{"BEARER", http.Header{"Authorization": {"BEARER first-secret"}}, false},
		{"Token", http.Header{"Authorization": {"Token first-secret"}}, false},
		{"no-break space behind", http.Header{"Authorization": {"Bearer first-secret\u00a0"}}, false},
		{"percent-encoded", http.Header{"Authorization": {"Bearer %66irst-secret"}}, false},
		{"in quotes", http.Header{"Authorization": {`Bearer "first-secret"`}}, false},
		{"a list", http.Header{"Authorization": {"Bearer first-secret, Bearer x"}}, false},
		{"both with a space", http.Header{"Authorization": {"Bearer first-secret second-secret"}}, false},
		{"no scheme", http.Header{"Authorization": {"first-secret"}}, false},
		{"both at once", http.Header{"Authorization": {"Bearer first-secret,second-secret"}}, false},
		{"two lines, the right one first", http.Header{"Authorization": {"Bearer first-secret", "Bearer x"}}, false},
		{"two lines, the right one last", http.Header{"Authorization": {"Bearer x", "Bearer first-secret"}}, false},
		{"two lines, both right", http.Header{"Authorization": {"Bearer first-secret", "Bearer first-secret"}}, false},
		{"its digest", http.Header{"Authorization": {"Bearer " + hex.EncodeToString(digest[:])}}, false},
		{"the bytes of its digest", http.Header{"Authorization": {"Bearer " + string(digest[:])}}, false},
		{"the bytes of a pair's digest", http.Header{"Authorization": {"Bearer " + string(pair[:])}}, false},
		{"a pair as a secret", http.Header{"Authorization": {"Bearer a@example.com\x00key-a"}}, false},
		{"a key as a secret", http.Header{"Authorization": {"Bearer key-a"}}, false},
		{"in a cookie", http.Header{"Cookie": {"Authorization=Bearer first-secret; token=first-secret"}}, false},
		{"in another header", http.Header{"X-Auth-User-Service-Key": {"first-secret"}, "Proxy-Authorization": {"Bearer first-secret"}}, false},

		{"key alone", http.Header{"X-Auth-Key": {"key-a"}}, false},
		{"address alone", http.Header{"X-Auth-Email": {"a@example.com"}}, false},
		{"key of another address", http.Header{"X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"key-b"}}, false},
		{"address in capitals", http.Header{"X-Auth-Email": {"A@example.com"}, "X-Auth-Key": {"key-a"}}, false},
		{"two addresses", http.Header{"X-Auth-Email": {"a@example.com", "a@example.com"}, "X-Auth-Key": {"key-a"}}, false},
		{"no key", http.Header{"X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {""}}, false},
		{"a part of the key", http.Header{"X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"key-"}}, false},
		{"another address", http.Header{"X-Auth-Email": {"c@example.com"}, "X-Auth-Key": {"key-a"}}, false},
		{"address and key swapped", http.Header{"X-Auth-Email": {"key-a"}, "X-Auth-Key": {"a@example.com"}}, false},
		{"two addresses of two pairs", http.Header{"X-Auth-Email": {"a@example.com", "b@example.com"}, "X-Auth-Key": {"key-a"}}, false},
		{"two keys, the right one last", http.Header{"X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"x", "key-a"}}, false},
		{"key as a secret beside its address", http.Header{"X-Auth-Email": {"a@example.com"}, "Authorization": {"Bearer key-a"}}, false},
		{"two keys", http.Header{"X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"key-a", "x"}}, false},
		{"a secret as a key", http.Header{"X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"first-secret"}}, false},
		{"a pair cut elsewhere", http.Header{"X-Auth-Email": {"a@example.comk"}, "X-Auth-Key": {"ey-a"}}, false},
		{"a pair in one header", http.Header{"X-Auth-Email": {"a@example.com\x00key-a"}, "X-Auth-Key": {""}}, false},
		{"both empty", http.Header{"X-Auth-Email": {""}, "X-Auth-Key": {""}}, false},
	} {
		if got := known.allow(tc.header); got != tc.want {
			t.Errorf("%s: allow = %t, want %t", tc.name, got, tc.want)
		}
	}
	for name, none := range map[string]credentials{"no credentials": {}, "a pair alone": {pairs: known.pairs}} {
		for _, secret := range []string{"", "Bearer ", "Bearer first-secret", "Bearer " + strings.Repeat("\x00", sha256.Size)} {
			if none.allow(http.Header{"Authorization": {secret}}) {
				t.Errorf("%s: %q is allowed", name, secret)
			}
		}
	}
}

// A1: a client that is refused learns nothing of the reason, be it from the body,
// a header or the address that was asked for.
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

// A secret that no header can carry, or none at all, is refused, and no error
// shows one. A short one is accepted with a warning.
func TestSecrets(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		config   Config
		send     string // what authorizes then; "" if New refuses
		want     string // in the error
		warnings int
	}{
		{"good", Config{BearerTokens: []string{"hunter2-secret-that-is-long"}}, "hunter2-secret-that-is-long", "", 0},
		{"of a file, without its line feed", Config{BearerTokens: []string{"hunter2-from-a-file\r\n"}}, "hunter2-from-a-file", "", 0},
		{"15 characters", Config{BearerTokens: []string{"hunter2-letters"}}, "hunter2-letters", "", 1},
		{"16 characters", Config{BearerTokens: []string{"hunter2-letters-"}}, "hunter2-letters-", "", 0},
		{"short ones", Config{BearerTokens: []string{"hunter2", "x"}, AuthKeys: []AuthKey{{"a@b.c", "short"}, {"a@b.c", "a-key-that-is-long-enough"}}}, "hunter2", "", 3},
		{"none", Config{}, "", "no credential", 0},
		{"empty", Config{BearerTokens: []string{""}}, "", "bearer_token 1", 0},
		{"empty after a good one", Config{BearerTokens: []string{"hunter2-secret-that-is-long", ""}}, "", "bearer_token 2", 0},
		{"nothing but a line feed", Config{BearerTokens: []string{"\n"}}, "", "bearer_token 1", 0},
		{"space within", Config{BearerTokens: []string{"hunter2 secret"}}, "", "bearer_token 1", 0},
		{"space before", Config{BearerTokens: []string{" hunter2"}}, "", "bearer_token 1", 0},
		{"space after", Config{BearerTokens: []string{"hunter2 "}}, "", "bearer_token 1", 0},
		{"line feed within", Config{BearerTokens: []string{"hunter2\nsecret"}}, "", "bearer_token 1", 0},
		{"control character", Config{BearerTokens: []string{"hunter2\x7f"}}, "", "bearer_token 1", 0},
		{"letter beyond ASCII", Config{BearerTokens: []string{"hunter2-é"}}, "", "bearer_token 1", 0},
		{"key without an address", Config{AuthKeys: []AuthKey{{"", "hunter2"}}}, "", "auth_key 1, email", 0},
		{"address without a key", Config{AuthKeys: []AuthKey{{"a@example.com", ""}}}, "", "auth_key 1, key", 0},
		{"bad key after a good secret", Config{BearerTokens: []string{"a-long-good-secret"}, AuthKeys: []AuthKey{{"a@example.com", "hunter2\n2"}}}, "", "auth_key 1, key", 0},
	} {
		core, logs := observer.New(zap.WarnLevel)
		tc.config.Logger = zap.New(core)
		server, err := New(tc.config)
		if text := fmt.Sprint(logs.All(), err); logs.Len() != tc.warnings || strings.Contains(text, "hunter2") {
			t.Errorf("%s: %d warnings, want %d, and no secret in %s", tc.name, logs.Len(), tc.warnings, text)
		}
		if tc.send == "" {
			if err == nil || server != nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: New = %v, %v, want %q in the error", tc.name, server, err, tc.want)
			}
			continue
		}
		if err != nil || !server.credentials.allow(http.Header{"Authorization": {"Bearer " + tc.send}}) || server.credentials.allow(http.Header{"Authorization": {"Bearer x" + tc.send}}) {
			t.Errorf("%s: %v, or %q does not authorize", tc.name, err, tc.send)
		}
	}
}

// A2: the time of a comparison tells nothing of how much of a secret was right,
// nor which of many it was. Digests are compared with crypto/subtle, all of them:
// the functions that decide make no other comparison or call that depends on a
// secret, and their loops have no early exit.
func TestSecretsAreComparedInConstantTime(t *testing.T) {
	t.Parallel()
	permitted := []string{
		"len(email) == 1", "len(key) == 1", "len(lines) != 1", "matches == 1", "len(email)", "len(key)", "len(lines)", // not secret
		"bearer(h)", `strings.CutPrefix(lines[0], bearerScheme)`, "[]byte(secret)", "sha256.Sum256([]byte(secret))", "pairDigest(email[0], key[0])",
		"matchDigest(c.bearer, sha256.Sum256([]byte(secret)))", "matchDigest(c.pairs, pairDigest(email[0], key[0]))",
		"subtle.ConstantTimeCompare(known[i][:], presented[:])",
	}
	files := token.NewFileSet()
	checked := 0
	for _, decl := range must(parser.ParseFile(files, "credentials.go", nil, 0)).Decls {
		function, ok := decl.(*ast.FuncDecl)
		if !ok || !slices.Contains([]string{"allow", "bearer", "matchDigest"}, function.Name.Name) {
			continue
		}
		ast.Inspect(function, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BinaryExpr, *ast.CallExpr:
				var text strings.Builder
				if err := printer.Fprint(&text, files, n); err != nil {
					t.Fatal(err)
				}
				checked++
				if binary, ok := n.(*ast.BinaryExpr); (!ok || binary.Op != token.LAND) && !slices.Contains(permitted, text.String()) {
					t.Errorf("%s: is the time of %s the same for all secrets?", files.Position(n.Pos()), &text)
				}
			case *ast.ForStmt, *ast.RangeStmt:
				ast.Inspect(n, func(n ast.Node) bool {
					switch n.(type) {
					case *ast.ReturnStmt, *ast.BranchStmt, *ast.IfStmt:
						t.Errorf("%s: a loop over secrets ends early", files.Position(n.Pos()))
					}
					return true
				})
			}
			return true
		})
	}
	if checked < len(permitted) {
		t.Errorf("%d expressions are checked, want at least %d", checked, len(permitted))
	}
}

// A3: an address that guesses wrong is told so a bounded number of times, and the
// log once. No other address is concerned.
func TestFailuresAreLimitedByAddress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFailureLimit()
		guessing, neighbour := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		wantFailures := func(what string, within int) {
			t.Helper()
			for i := range within {
				if got := f.count(guessing); got != failureAllowed {
					t.Fatalf("%s, failure %d is %d, want %d of them within the limit", what, i+1, got, within)
				}
			}
			if f.count(guessing) == failureAllowed {
				t.Errorf("%s, more than %d failures are within the limit", what, within)
			}
		}
		for range failureBurst {
			if got := f.count(guessing); got != failureAllowed {
				t.Fatalf("a failure is %d", got)
			}
		}
		for i, want := range []failureResult{failureOverLimit, failureReported, failureReported} {
			if got := f.count(guessing); got != want {
				t.Errorf("failure %d beyond the limit is %d, want %d", i+1, got, want)
			}
		}
		if got := f.count(neighbour); got != failureAllowed {
			t.Errorf("the first failure of its neighbour is %d", got)
		}
		for range 5 {
			<-time.After(time.Second)
			wantFailures("after a second", 1)
		}
		<-time.After(2 * failureBurst * time.Second)
		wantFailures("after a long silence", failureBurst)
	})
}

// A client has one IPv4 address and as many IPv6 addresses as it likes, within a
// /64.
func TestNetworkOfAClient(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.0", false},
		{"2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true},
		{"2001:db8::1", "2001:db8:0:1::1", false},
		{"::1", "127.0.0.1", false},
	} {
		a, b := clientNetwork(netip.MustParseAddr(tc.a)), clientNetwork(netip.MustParseAddr(tc.b))
		if (a == b) != tc.same {
			t.Errorf("%s and %s are one client: %t, want %t", tc.a, tc.b, a == b, tc.same)
		}
	}
	if clientNetwork(netip.Addr{}) != (netip.Prefix{}) {
		t.Error("an unknown address has a network")
	}
}

// Failures at the same time are all counted, and one of them is reported.
func TestFailuresAtTheSameTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFailureLimit()
		address := netip.MustParseAddr("2001:db8::1")
		var counts [3]atomic.Int64
		var wg sync.WaitGroup
		for range 2 * failureBurst {
			wg.Go(func() { counts[f.count(address)].Add(1) })
		}
		wg.Wait()
		if allowed, reported := counts[failureAllowed].Load(), counts[failureOverLimit].Load(); allowed != failureBurst || reported != 1 {
			t.Errorf("of %d failures at the same time, %d are within the limit and %d reported, want %d and 1", 2*failureBurst, allowed, reported, failureBurst)
		}
	})
}

// A3: after many wrong calls an address is refused without an answer to its
// guess, and the right credential works all the same: an operator who shares an
// address with an attacker must still be able to revoke a key.
func TestWrongCallsFromOneAddress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := control(t, nil)
		at := func(address, secret string) reply {
			return c.call(t, "GET", "keys", "", from(address), with("Authorization", "Bearer "+secret))
		}
		limited := 0
		for range 2 * failureBurst {
			a := at("198.51.100.1", "guess")
			if a.status != http.StatusTooManyRequests {
				wantReply(t, "a wrong call", a, 401, codeCredentials)
				continue
			}
			limited++
			if a.header.Get("Retry-After") == "" || a.header.Get("Www-Authenticate") != "" || a.errors[0].Code != codeLimited {
				t.Errorf("a call too many is answered %s %v", a.raw, a.header)
			}
		}
		if limited != failureBurst {
			t.Errorf("%d of %d wrong calls are too many, want %d", limited, 2*failureBurst, failureBurst)
		}
		wantReply(t, "a wrong call from elsewhere", at("198.51.100.2", "guess"), 401, codeCredentials)
		for range 3 * failureBurst {
			wantReply(t, "a right call", at("198.51.100.1", apiSecret), 200, 0)
		}
		c.ClientAddress = func(*http.Request) netip.Addr { return netip.Addr{} }
		wantReply(t, "a right call from nowhere", at("198.51.100.1", apiSecret), 200, 0)
		if warnings := c.logs.FilterLevelExact(zap.WarnLevel).All(); len(warnings) != 1 || warnings[0].ContextMap()["client_ip"] != "198.51.100.1" {
			t.Errorf("the log has %d warnings, want one of the address: %v", len(warnings), warnings)
		}
	})
}
