package signedplayback

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// leakLength is how many characters of a signature are too many in a log.
const leakLength = 64

// wantRedacted holds that what has become of a text gives no signature away, not
// to somebody who resolves its escapes either, and that the filter is done with
// it.
func wantRedacted(t testing.TB, text, redacted, compact string) {
	t.Helper()
	signature := compact[strings.LastIndexByte(compact, '.')+1:]
	for shown := redacted; ; {
		if leaks(shown, signature) {
			t.Fatalf("%q becomes %q, with a part of the signature", text, redacted)
		}
		plain := unescapeValid(shown)
		if plain == shown {
			break
		}
		shown = plain
	}
	if again := redactTokens(redacted); again != redacted {
		t.Fatalf("%q becomes %q, and that becomes %q", text, redacted, again)
	}
}

// leaks reports whether a text holds leakLength characters of a signature.
func leaks(text, signature string) bool {
	// Half of them, aligned, are in every such part, and quicker to find.
	const half = leakLength / 2
	for at := 0; at+half <= len(signature); at += half {
		if !strings.Contains(text, signature[at:at+half]) {
			continue
		}
		for i := max(0, at-half); i <= min(at, len(signature)-leakLength); i++ {
			if strings.Contains(text, signature[i:i+leakLength]) {
				return true
			}
		}
	}
	return false
}

// unescapeValid resolves the escapes that are valid, as some programs do.
func unescapeValid(text string) string {
	var plain strings.Builder
	for len(text) > 0 {
		before, rest, escaped := strings.Cut(text, "%")
		plain.WriteString(before)
		if text = rest; !escaped {
			break
		}
		if decoded, err := url.PathUnescape("%" + rest[:min(2, len(rest))]); err == nil {
			plain.WriteString(decoded)
			text = rest[2:]
			continue
		}
		plain.WriteByte('%')
	}
	return plain.String()
}

// escapeAll writes the characters that a set contains as percent escapes.
func escapeAll(text, set, format string) string {
	var escaped strings.Builder
	for i := range len(text) {
		if strings.IndexByte(set, text[i]) >= 0 {
			fmt.Fprintf(&escaped, format, text[i])
		} else {
			escaped.WriteByte(text[i])
		}
	}
	return escaped.String()
}

const tokenAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."

// A token is replaced by its id wherever it stands, and nothing around it is
// touched.
func TestTokensAreRedacted(t *testing.T) {
	compact, other := plainToken(), signedFor("public")
	id, otherID := tokenID(compact), tokenID(other)
	cut := compact[:len(compact)-200]
	for _, tc := range []struct{ name, text, want string }{
		{"token", compact, id},
		{"path", "/" + compact + "/manifest/video.m3u8", "/" + id + "/manifest/video.m3u8"},
		{"path alone", "/" + compact, "/" + id},
		{"path and query", "/" + compact + "/x.m3u8?_HLS_msn=4&a=b", "/" + id + "/x.m3u8?_HLS_msn=4&a=b"},
		{"Referer", "https://media.example.com:8443/" + compact + "/iframe?poster=x#t=5", "https://media.example.com:8443/" + id + "/iframe?poster=x#t=5"},
		{"query", "/watch?token=" + compact + "&t=1", "/watch?token=" + id + "&t=1"},
		{"query with a semicolon", "/watch?token=" + compact + ";t=1", "/watch?token=" + id + ";t=1"},
		{"fragment", "/watch#" + compact, "/watch#" + id},
		{"matrix parameter", "/x;token=" + compact + "/y", "/x;token=" + id + "/y"},
		{"bearer", "Bearer " + compact, "Bearer " + id},
		{"cookie", "a=b; token=" + compact + "; c=d", "a=b; token=" + id + "; c=d"},
		{"two", "/" + compact + "/x from /" + other + "/y", "/" + id + "/x from /" + otherID + "/y"},
		{"the same twice", compact + " " + compact, id + " " + id},
		{"behind each other in a path", "/" + compact + "/" + other + "/x", "/" + id + "/" + otherID + "/x"},
		{"list", compact + "," + other, id + "," + otherID},
		{"in quotes", `could not open "` + compact + `": no such file`, `could not open "` + id + `": no such file`},
		{"in brackets", "<" + compact + "> (" + other + ") [" + compact + "]", "<" + id + "> (" + otherID + ") [" + id + "]"},
		{"JSON", `{"uri":"/` + compact + `/x","n":[1,"` + other + `"]}`, `{"uri":"/` + id + `/x","n":[1,"` + otherID + `"]}`},
		{"JSON in JSON", `"{\"uri\":\"/` + compact + `/x\"}"`, `"{\"uri\":\"/` + id + `/x\"}"`},
		{"lines", compact + "\n" + other + "\r\n", id + "\n" + otherID + "\r\n"},
		{"within letters beyond ASCII", "é" + compact + "漢", "é" + id + "漢"},
		{"dots escaped", "/" + strings.ReplaceAll(compact, ".", "%2E") + "/x", "/" + id + "/x"},
		{"dots escaped in lower case", "/" + strings.ReplaceAll(compact, ".", "%2e") + "/x", "/" + id + "/x"},
		{"dots escaped twice", "/" + strings.ReplaceAll(compact, ".", "%252E") + "/x", "/" + id + "/x"},
		{"first character escaped", "/%65" + compact[1:] + "/x", "/" + id + "/x"},
		{"all escaped", "/" + escapeAll(compact, tokenAlphabet, "%%%02X") + "/x", "/" + id + "/x"},
		{"all escaped in lower case", escapeAll(compact, tokenAlphabet, "%%%02x"), id},
		{"all escaped twice", escapeAll(compact, tokenAlphabet, "%%25%02X"), id},
		{"all escaped thrice", escapeAll(compact, tokenAlphabet, "%%2525%02x"), id},
		{"URL that is a query's value", "/login?next=" + url.QueryEscape("https://media.example.com/"+compact+"/iframe"), "/login?next=https://media.example.com/" + id + "/iframe"},
		{"padded", compact + "==", id + "=="},
		{"padded and escaped", "/" + compact + "%3D%3D/x", "/" + id + "==/x"},
		{"cut short", "/" + cut, "/" + tokenID(cut)},
		{"cut to its signed part", compact[:strings.LastIndexByte(compact, '.')], tokenID(compact[:strings.LastIndexByte(compact, '.')])},
		{"signature alone", compact[strings.LastIndexByte(compact, '.')+1:], tokenID(compact[strings.LastIndexByte(compact, '.')+1:])},
		{"with something before it", "x" + compact, tokenID("x" + compact)},
		{"with something behind it", compact + ".x", tokenID(compact + ".x")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := redactTokens(tc.text)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.text, diff)
			}
			wantRedacted(t, tc.text, got, compact)
			wantRedacted(t, tc.text, got, other)
		})
	}
}

// The attack: a token that is spoilt, so that it is refused and logged, in a way
// that whoever reads the log can repair.
func TestSpoiltTokensAreRedacted(t *testing.T) {
	compact := plainToken()
	signature := strings.LastIndexByte(compact, '.') + 1
	short := compact[:signature+100]
	for name, text := range map[string]string{
		"an escape that is none behind it":         compact + "%zz",
		"an escape that is cut":                    escapeAll(compact, tokenAlphabet, "%%%02X")[:3*len(compact)-1],
		"cut within an escape":                     strings.ReplaceAll(compact, ".", "%2E")[:signature+4+100] + "%4",
		"escaped, cut, and an escape that is none": "%65" + escapeAll(short[1:], "e", "%%%02X") + "%zz",
		"escaped twice and cut":                    escapeAll(compact, ".", "%%25%02X")[:signature+8+100] + "%2",
		"escape of a line end in the signature":    compact[:signature+200] + "%0A" + compact[signature+200:],
		"dots doubled":                             strings.ReplaceAll(compact, ".", ".."),
		"header in other letters":                  "EYJ" + compact[3:],
		"without its header":                       compact[strings.IndexByte(compact, '.'):],
		"the signature first":                      compact[signature:] + "." + compact[:signature-1],
		"with the other alphabet's 62":             strings.ReplaceAll(compact, "-", "+"),
	} {
		t.Run(name, func(t *testing.T) {
			for _, around := range []string{"%s", "/%s/x.ts", "https://media.example.com/%s?a=%%2F", `{"uri":"%s"}`} {
				text := fmt.Sprintf(around, text)
				wantRedacted(t, text, redactTokens(text), compact)
			}
		})
	}
}

// plainTexts are what logs of a video server are made of.
var plainTexts = []string{
	"", "/", "%", "%25", "%zz", "%2", ".", "..", "...", "a.b.c", "/demo/manifest/video.m3u8", "/a.b.c/x.ts",
	"/" + strings.Repeat("v", 64) + "/iframe", "/my%20clip%c3%A9/~1.ts?x=%2F%3D", "/x.m3u8?_HLS_msn=4&_HLS_part=2",
	"5eb63bbbe01eeed093cb22bb8f5acdc3/seg_000123.m4s", // MD5
	"/" + strings.Repeat("0123456789abcdef", 4) + ".ts",
	"/" + strings.Repeat("0123456789ABCDEF", 8) + ".m4s", "/" + strings.Repeat("0123456789abcdef", 8) + "/" + strings.Repeat("fedcba9876543210", 8) + ".ts",
	"/550e8400-e29b-41d4-a716-446655440000/550e8400-e29b-41d4-a716-446655440000.mp4",
	"203.0.113.7", "203.0.113.7:49152", "2001:db8::203.0.113.7", "[2001:db8:85a3:8d3:1319:8a2e:370:7348]:443", "fe80::1%eth0",
	"media.example.com", "a.very.long.name.of.a.host.in.a.cluster.of.some.provider.example.com:8443",
	"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36",
	"AppleCoreMedia/1.0.0.21F90 (iPhone; U; CPU OS 17_5 like Mac OS X; en_us)",
	"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", "gzip, deflate, br, zstd", "bytes=0-99,200-",
	`"33a64df551425fcc55e4d42a148795d9f25f89d4"`, "Tue, 15 Jan 2027 08:00:00 GMT", "2027-01-15T08:00:00.000Z",
	"/heyJude.mp3", "/monkeyJar/1.ts", "eyJ", "eyJhbGciOiJSUzI1NiJ9", // no token without a dot
	`{"level":"info","msg":"handled request","request":{"method":"GET","uri":"/demo/x.ts"}}`,
	"dial tcp 127.0.0.1:8081: connect: connection refused", "signature_invalid: token: invalid signature",
	strings.Repeat("a", 128), strings.Repeat("a", 64) + "." + strings.Repeat("b", 64) + "." + strings.Repeat("c", 64),
	"\x00\xff\xfe", "漢字.漢字.漢字", strings.Repeat("%25", 30),
}

// What holds no token is logged as it is: a log in which the names of segments
// are missing is of no use.
func TestPlainTextsStay(t *testing.T) {
	for _, text := range plainTexts {
		if got := redactTokens(text); got != text {
			t.Errorf("%q becomes %q", text, got)
		}
	}
	for _, a := range plainTexts {
		for _, b := range plainTexts {
			if text := a + " " + b; redactTokens(text) != text {
				t.Errorf("%q becomes %q", text, redactTokens(text))
			}
		}
	}
}

// randomSpelling writes a token in one of many ways, perhaps cut short, into a
// text.
func randomSpelling(random *rand.Rand, compact string) string {
	text := compact
	if random.IntN(3) == 0 {
		text = text[:len(text)-random.IntN(300)]
	}
	for range random.IntN(3) {
		set := pick(random, []string{".", "e", "eyJ.", "-_.", "aAbBcC%", tokenAlphabet + "%", "%"})
		text = escapeAll(text, set, pick(random, []string{"%%%02X", "%%%02x", "%%25%02X"}))
	}
	text += pick(random, []string{"", "", "=", "==", "%3D", "."})
	for range random.IntN(3) {
		between := pick(random, []string{" ", "/", "?token=", "&", `"`, ",", "\n", ": ", "", "."})
		if around := pick(random, plainTexts); random.IntN(2) == 0 {
			text = around + between + text
		} else {
			text += between + around
		}
	}
	return text
}

// However a token is spelled and whatever stands around it, no signature comes
// out.
func TestEverySpellingIsRedacted(t *testing.T) {
	random := rand.New(rand.NewPCG(6, 3))
	compacts := []string{plainToken(), signedFor("public"), signedWithRules(needsCountry)}
	for range 2000 {
		compact := pick(random, compacts)
		text := randomSpelling(random, compact)
		wantRedacted(t, text, redactTokens(text), compact)
	}
}

// The attack: a request line of nested escapes, which anybody can send and which
// must be logged. A filter that unfolds them one by one takes memory and time by
// the square of their number.
func TestRedactingTakesLinearWork(t *testing.T) {
	for name, text := range map[string]string{
		"nested escapes":      "/%" + strings.Repeat("25", 4<<10),
		"nested escapes of e": "/%" + strings.Repeat("25", 4<<10) + "65yJ",
		"escapes":             strings.Repeat("%2F", 3<<10),
		"escaped separators":  strings.Repeat("%2520", 2<<10),
		"dots":                strings.Repeat(".", 8<<10),
		"headers of tokens":   strings.Repeat("eyJ.", 2<<10),
		"many short runs":     strings.Repeat("eyJa.b/", 1<<10),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			redactTokens(text)
			runtime.ReadMemStats(&after)
			const most = 32 // times its own length, and some for what else is going on
			if taken := after.TotalAlloc - before.TotalAlloc; taken > uint64(most*len(text)+64<<10) {
				t.Errorf("%d bytes of log take %d bytes of memory", len(text), taken)
			}
		})
	}
}

// A token that stands nowhere is free.
func TestRedactingPlainTextsAllocatesNothing(t *testing.T) {
	const text = "/demo/video/1080/seg_000123.m4s?a=b"
	if n := testing.AllocsPerRun(100, func() { redactTokens(text) }); n != 0 {
		t.Errorf("%v allocations for a path without a token, want none", n)
	}
}

// encoded is a field as it stands in a line of the log.
func inLine(t *testing.T, field zapcore.Field) string {
	t.Helper()
	line, err := zapcore.NewJSONEncoder(zapcore.EncoderConfig{SkipLineEnding: true}).EncodeEntry(zapcore.Entry{}, []zapcore.Field{field})
	if err != nil {
		t.Fatal(err)
	}
	return line.String()
}

// viewerURL is a stringer.
func viewerURL(compact string) *url.URL { return &url.URL{Path: "/" + compact + "/x.ts"} }

// nested is an object as handlers log them.
type nested struct{ compact string }

func (n nested) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("uri", "/"+n.compact+"/x.ts")
	enc.AddInt("status", 200)
	enc.AddDuration("duration", time.Second)
	if err := enc.AddArray("uris", zapcore.ArrayMarshalerFunc(func(enc zapcore.ArrayEncoder) error {
		enc.AppendString(n.compact)
		enc.AppendBool(true)
		return nil
	})); err != nil {
		return err
	}
	return enc.AddObject("inner", zapcore.ObjectMarshalerFunc(func(enc zapcore.ObjectEncoder) error {
		enc.AddString("token", n.compact)
		return nil
	}))
}

// Fields of every type that can hold a text are redacted, in the shape in which
// they are logged, and all others are left alone.
func TestFilteredFields(t *testing.T) {
	compact := plainToken()
	id := tokenID(compact)
	request := requestFor(t, "/"+compact+"/x.ts?a=b", func(r *http.Request) {
		r.Header = http.Header{"Referer": is("https://media.example.net/" + compact + "/iframe"), "X-Token": is(compact, "b"), "Accept": is("*/*")}
	})
	for name, tc := range map[string]struct {
		field zapcore.Field
		want  string
	}{
		"string":               {zap.String("f", "/"+compact+"/x"), `{"f":"/` + id + `/x"}`},
		"pointer to a string":  {zap.Stringp("f", &compact), `{"f":"` + id + `"}`},
		"strings":              {zap.Strings("f", []string{"a", compact}), `{"f":["a","` + id + `"]}`},
		"strings as any":       {zap.Any("f", []string{"a", compact}), `{"f":["a","` + id + `"]}`},
		"Caddy's strings":      {zap.Array("f", caddyhttp.LoggableStringArray{"a", compact}), `{"f":["a","` + id + `"]}`},
		"bytes":                {zap.ByteString("f", []byte("/"+compact)), `{"f":"/` + id + `"}`},
		"error":                {zap.NamedError("f", fmt.Errorf("reading %q: %w", compact, io.EOF)), `{"f":"reading \"` + id + `\": EOF"}`},
		"errors":               {zap.Errors("f", []error{errors.New(compact), io.EOF}), `{"f":[{"error":"` + id + `"},{"error":"EOF"}]}`},
		"stringer":             {zap.Stringer("f", viewerURL(compact)), `{"f":"/` + id + `/x.ts"}`},
		"stringer as any":      {zap.Any("f", viewerURL(compact)), `{"f":"/` + id + `/x.ts"}`},
		"stringers":            {zap.Stringers("f", []*url.URL{viewerURL(compact)}), `{"f":["/` + id + `/x.ts"]}`},
		"object":               {zap.Object("f", nested{compact}), `{"f":{"duration":1000000000,"inner":{"token":"` + id + `"},"status":200,"uri":"/` + id + `/x.ts","uris":["` + id + `",true]}}`},
		"object within itself": {zap.Inline(nested{compact}), `{"duration":1000000000,"inner":{"token":"` + id + `"},"status":200,"uri":"/` + id + `/x.ts","uris":["` + id + `",true]}`},
		"objects":              {zap.Objects("f", []nested{{compact}}), `{"f":[{"duration":1000000000,"inner":{"token":"` + id + `"},"status":200,"uri":"/` + id + `/x.ts","uris":["` + id + `",true]}]}`},
		"fields":               {zap.Dict("f", zap.String("uri", compact), zap.Int("n", 1)), `{"f":{"n":1,"uri":"` + id + `"}}`},
		"Caddy's headers with credentials": {
			zap.Object("f", caddyhttp.LoggableHTTPHeader{Header: http.Header{"Authorization": is("Bearer x"), "X-Auth-Email": is("me@example.com"), "X-Auth-Key": is("secret"), "X-Auth-User-Service-Key": is("secret"), "x-auth-key": is("secret")}}),
			`{"f":{"Authorization":["REDACTED"],"X-Auth-Email":["me@example.com"],"X-Auth-Key":["REDACTED"],"X-Auth-User-Service-Key":["REDACTED"],"x-auth-key":["REDACTED"]}}`,
		},
		"Caddy's headers": {zap.Object("f", caddyhttp.LoggableHTTPHeader{Header: request.Header}), `{"f":{"Accept":["*/*"],"Referer":["https://media.example.net/` + id + `/iframe"],"X-Token":["` + id + `","b"]}}`},
		"Caddy's request": {zap.Object("f", caddyhttp.LoggableHTTPRequest{Request: request}), `{"f":{"client_ip":"203.0.113.7",` +
			`"headers":{"Accept":["*/*"],"Referer":["https://media.example.net/` + id + `/iframe"],"X-Token":["` + id + `","b"]},` +
			`"host":"media.example.net","method":"GET","proto":"HTTP/1.1","remote_ip":"203.0.113.7","remote_port":"1234","uri":"/` + id + `/x.ts?a=b"}}`},
		"map":                      {zap.Any("f", map[string]any{"a": map[string]any{"b": []any{compact, 1, nil}}, "c": []string{compact}}), `{"f":{"a":{"b":["` + id + `",1,null]},"c":["` + id + `"]}}`},
		"headers":                  {zap.Any("f", http.Header{"Referer": is(compact)}), `{"f":{"Referer":["` + id + `"]}}`},
		"values of a query":        {zap.Any("f", url.Values{"token": is(compact)}), `{"f":{"token":["` + id + `"]}}`},
		"map of strings":           {zap.Any("f", map[string]string{"uri": compact}), `{"f":{"uri":"` + id + `"}}`},
		"headers with credentials": {zap.Any("f", http.Header{"X-Auth-Key": is("secret"), "X-Other": is("b")}), `{"f":{"X-Auth-Key":["REDACTED"],"X-Other":["b"]}}`},
		"map in a map":             {zap.Any("f", map[string]any{"headers": http.Header{"Referer": is(compact)}}), `{"f":{"headers":{"Referer":["` + id + `"]}}}`},
		"struct":                   {zap.Any("f", struct{ URI string }{compact}), `{"f":{"URI":"` + id + `"}}`},
		"JSON":                     {zap.Any("f", json.RawMessage(`{"uri":"`+compact+`"}`)), `{"f":{"uri":"` + id + `"}}`},

		"number":   {zap.Int("f", 7), `{"f":7}`},
		"fraction": {zap.Float64("f", 0.5), `{"f":0.5}`},
		"truth":    {zap.Bool("f", true), `{"f":true}`},
		"duration": {zap.Duration("f", time.Second), `{"f":1000000000}`},
		"time":     {zap.Time("f", testTime), inLine(t, zap.Time("f", testTime))},
		"nothing":  {zap.Any("f", nil), `{"f":null}`},
		"no error": {zap.Error(nil), `{}`},
		"skipped":  {zap.Skip(), `{}`},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, inLine(t, LogFilter{}.Filter(tc.field))); diff != "" {
				t.Errorf("the field (-want +got):\n%s", diff)
			}
		})
	}
	if request.RequestURI != "/"+compact+"/x.ts?a=b" || request.Header.Get("X-Token") != compact {
		t.Error("the filter has changed the request itself")
	}
}

// filteredServer is a server that logs through the filter.
const filteredServer = `{
	"logging": {"logs": {"default": {
		"level": "DEBUG", "writer": {"output": "file", "filename": %q},
		"encoder": {"format": "filter", "wrap": {"format": %q}, "fields": {%s}}
	}}},
	"apps": {
		"signed_playback": {"key_file": [%q]},
		"http": {"servers": {"playback": {
			"automatic_https": {"disable": true},
			"routes": [{"handle": [
				{"handler": "signed_playback"},
				{"handler": "static_response", "body": "#EXTM3U\n"}
			]}],
			"logs": {}
		}}}
	}
}`

// Within Caddy's own logging: the access log and the error log keep all that
// they say but the tokens, in either format, whichever way the filter is set up.
func TestLogFilterWithinCaddysLogs(t *testing.T) {
	const filter = `: {"filter": "signed_playback"}`
	for _, format := range []string{"json", "console"} {
		for name, fields := range map[string]string{
			"fields": `"request>uri"` + filter + `, "request>headers"` + filter,
			"object": `"request"` + filter,
		} {
			t.Run(format+" "+name, func(t *testing.T) {
				file := filepath.Join(t.TempDir(), "log")
				config := fmt.Sprintf(filteredServer, file, format, fields, writeFile(t, "key.json", publicJWK(testKey())))
				server := serversOf(t, config)["playback"]
				for _, compact := range []string{plainToken(), signedWithRules(blocksAll)} {
					r := httptest.NewRequest(http.MethodGet, "/"+compact+"/x.ts", nil)
					r.Header.Set("Referer", "https://media.example.net/"+compact+"/iframe")
					r.Header.Set("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36")
					server.ServeHTTP(httptest.NewRecorder(), r)
				}
				log := string(must(os.ReadFile(file)))
				for _, compact := range []string{plainToken(), signedWithRules(blocksAll)} {
					if strings.Contains(log, "eyJ") {
						t.Errorf("the log holds a part of a token:\n%s", log)
					}
					for _, want := range []string{"/" + tokenID(compact) + "/x.ts", "https://media.example.net/" + tokenID(compact) + "/iframe"} {
						if !strings.Contains(log, want) {
							t.Errorf("the log does not hold %s:\n%s", want, log)
						}
					}
				}
				for _, want := range []string{"handled request", "rule_blocked: an access rule", "GET", "AppleWebKit/537.36", "example.com", "signed_playback_token_id"} {
					if !strings.Contains(log, want) {
						t.Errorf("the log does not hold %s:\n%s", want, log)
					}
				}
			})
		}
	}
}

// Whatever stands around a token and however its characters are escaped, no
// signature comes out, what comes out is final, and short words stay.
func FuzzRedactTokens(f *testing.F) {
	f.Add("/", "/x.ts", ".", "", false, uint16(0))
	f.Add("https://media.example.com/", "?a=%2F", "eyJ", ".", true, uint16(10))
	f.Add("%", "%zz", tokenAlphabet, "", false, uint16(0))
	f.Add("%2", "%2", "", "%", true, uint16(250))
	f.Add("", "%zz", "e", "", false, uint16(242))
	f.Add("eyJ.", ".eyJ", "", "", false, uint16(0))
	for _, text := range plainTexts {
		f.Add(text, text, ".", "", false, uint16(0))
	}
	f.Fuzz(func(t *testing.T, before, behind, once, again string, lower bool, cut uint16) {
		if len(before)+len(behind)+len(once)+len(again) > 2000 {
			return
		}
		format := "%%%02X"
		if lower {
			format = "%%%02x"
		}
		compact := plainToken()
		spelled := escapeAll(escapeAll(compact[:len(compact)-int(cut)%len(compact)], once, format), again, format)
		text := before + spelled + behind
		wantRedacted(t, text, redactTokens(text), compact)
		around := before + behind
		redacted := redactTokens(around)
		wantRedacted(t, around, redacted, compact)
		words := strings.FieldsFunc(around, func(r rune) bool { return r >= 0x80 || !isTokenCharacter(byte(r)) })
		if redacted != around && !slices.ContainsFunc(words, func(word string) bool { return len(word) >= minRedacted }) {
			t.Errorf("%q becomes %q, without a word of %d characters in it", around, redacted, minRedacted)
		}
	})
}
