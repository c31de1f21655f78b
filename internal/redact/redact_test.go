package redact

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// tokens are a token, one for another video, and one with access rules.
var tokens = sync.OnceValue(func() []string {
	key, err := token.GenerateSigningKey("k1")
	if err != nil {
		panic(err)
	}
	rules := json.RawMessage(`[{"type":"ip.geoip.country","action":"allow","country":["GB"]},{"type":"any","action":"block"}]`)
	var signed []string
	for _, claims := range []token.Claims{{VideoID: "demo"}, {VideoID: "public"}, {VideoID: "demo", AccessRules: rules}} {
		claims.ExpiresAt = time.Unix(1_800_003_600, 0)
		compact, err := token.Sign(claims, key)
		if err != nil {
			panic(err)
		}
		signed = append(signed, compact)
	}
	return signed
})

func plainToken() string { return tokens()[0] }

// leakLength is the number of characters of a signature that are too many in a
// log.
const leakLength = 64

// wantRedacted checks that a redacted text contains no signature, not even with
// its escapes decoded, and that redacting it again changes nothing.
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
	if again := Tokens(redacted); again != redacted {
		t.Fatalf("%q becomes %q, and that becomes %q", text, redacted, again)
	}
}

// leaks reports whether a text contains leakLength characters of a signature.
func leaks(text, signature string) bool {
	// Each such part contains an aligned half, which is quicker to find.
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

// unescapeValid decodes the valid escapes and keeps the others, as some programs do.
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

// escapeAll percent-encodes the characters that a set contains.
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

// The id of a token replaces it at every place, and the text around it stays. T and
// O are two tokens.
func TestTokensAreRedacted(t *testing.T) {
	t.Parallel()
	compact, other := plainToken(), tokens()[1]
	inserted, redacted := strings.NewReplacer("T", compact, "O", other), strings.NewReplacer("T", TokenID(compact), "O", TokenID(other))
	rows := make(map[string]string)
	for _, text := range []string{
		"T", "/T/manifest/video.m3u8", "/T", "/T/x.m3u8?_hls_msn=4&a=b", "https://media.example.com:8443/T/iframe?poster=x#t=5",
		"/watch?token=T&t=1", "/watch?token=T;t=1", "/watch#T", "/x;token=T/y", "bearer T", "a=b; token=T; c=d", "/T/x from /O/y", "T T",
		"/T/O/x", "T,O", `could not open "T": no such file`, "<T> (O) [T]", `{"uri":"/T/x","n":[1,"O"]}`, `"{\"uri\":\"/T/x\"}"`, "T\nO\r\n", "éT漢", "T==",
	} {
		rows[inserted.Replace(text)] = redacted.Replace(text)
	}
	dot := strings.LastIndexByte(compact, '.')
	for text, whole := range map[string]string{
		"/" + strings.ReplaceAll(compact, ".", "%2E") + "/x": "/T/x", "/" + strings.ReplaceAll(compact, ".", "%2e") + "/x": "/T/x",
		"/" + strings.ReplaceAll(compact, ".", "%252E") + "/x": "/T/x", "/%65" + compact[1:] + "/x": "/T/x",
		"/" + escapeAll(compact, tokenAlphabet, "%%%02X") + "/x": "/T/x", escapeAll(compact, tokenAlphabet, "%%%02x"): "T",
		escapeAll(compact, tokenAlphabet, "%%25%02X"): "T", escapeAll(compact, tokenAlphabet, "%%2525%02x"): "T",
		"/login?next=" + url.QueryEscape("https://media.example.com/"+compact+"/iframe"): "/login?next=https://media.example.com/T/iframe",
		"/" + compact + "%3D%3D/x": "/T==/x",
	} {
		rows[text] = redacted.Replace(whole)
	}
	for _, part := range []string{compact[:len(compact)-200], compact[:dot], compact[dot+1:], "x" + compact, compact + ".x"} {
		rows[part] = TokenID(part)
	}
	for text, want := range rows {
		got := Tokens(text)
		if got != want {
			t.Errorf("%s becomes %s, want %s", text, got, want)
		}
		wantRedacted(t, text, got, compact)
		wantRedacted(t, text, got, other)
	}
}

// The id of the control API replaces a session, which somebody could play with, wherever it is and
// however it is escaped or cut.
func TestSessionsAreRedacted(t *testing.T) {
	t.Parallel()
	session := sessions.NewAuthority([]byte("secret")).New(sessions.Owner{Video: "film"}, time.Unix(1_800_000_000, 0))
	key, _ := sessions.KeyIn(session)
	id := key.ID().String()
	for text, want := range map[string]string{
		"/film/~§/v/1.ts": "/film/¶/v/1.ts", "~§": "¶", "/film/~§": "/film/¶", "https://x/film/~§/?a=b&c=~§": "https://x/film/¶/?a=b&c=¶",
		"/~§/~§/x": "/¶/¶/x", `{"uri":"/film/~§/"}`: `{"uri":"/film/¶/"}`, "~§.ts": "¶.ts", "~§%2Fx": "¶%2Fx", "~§+~§": "¶+ ¶",
		"/film/%7E§/x": "/film/¶/x", "/film/%7e" + session + "/x": "/film/¶/x", "%2Ffilm%2F%7E§%2Fx": "/film/¶/x", "%257E§": "¶",
		"/film/~" + session[:31] + "/x": "/film/" + TokenID(session[:31]) + "/x", "~" + session[:17]: TokenID(session[:17]),
		"~" + session + "A": TokenID(session + "A"), "/~alice/notes": "/~alice/notes", "/~" + session[:16] + "/x": "/~" + session[:16] + "/x",
		"/" + plainToken() + "/~§/x": "/" + TokenID(plainToken()) + "/¶/x", "/~" + plainToken() + "/x": "/~" + TokenID(plainToken()) + "/x",
		"/~§%2F" + plainToken() + "/x": "/¶/" + TokenID(plainToken()) + "/x", "/~§%2e%2F~§%2f" + plainToken(): "/¶%2e%2F ¶/" + TokenID(plainToken()),
		"~~~§": "¶", "~§~§~§": "¶ ¶ ¶", strings.Repeat("a", 100) + "~§": strings.Repeat("a", 100) + " ¶", "~eyJ~§.x": "~eyJ ¶.x",
		"~§.eyJ/x": "~" + TokenID(session+".eyJ") + "/x", "/~" + plainToken() + "~§": "/~" + TokenID(plainToken()) + " ¶",
	} {
		text, want = strings.ReplaceAll(text, "§", session), strings.ReplaceAll(want, "¶", id)
		for name, redact := range map[string]func(string) string{"Tokens": Tokens, "Line": Line} {
			got := redact(text)
			if name == "Tokens" && got != want {
				t.Errorf("%s becomes %s, want %s", text, got, want)
			}
			if strings.Contains(got, session[16:31]) || redact(got) != got {
				t.Errorf("%s(%s) = %s", name, text, got)
			}
		}
	}
}

// The attack: a client damages a token, so that it is refused and logged, in a
// way that a reader of the log can undo.
func TestDamagedTokensAreRedacted(t *testing.T) {
	t.Parallel()
	compact := plainToken()
	signature := strings.LastIndexByte(compact, '.') + 1
	for _, text := range []string{
		compact + "%zz", // escapes that are invalid or cut off
		escapeAll(compact, tokenAlphabet, "%%%02X")[:3*len(compact)-1],
		strings.ReplaceAll(compact, ".", "%2E")[:signature+4+100] + "%4",
		"%65" + escapeAll(compact[1:signature+100], "e", "%%%02X") + "%zz",
		escapeAll(compact, ".", "%%25%02X")[:signature+8+100] + "%2",
		compact[:signature+200] + "%0A" + compact[signature+200:],
		strings.ReplaceAll(compact, ".", ".."), "EYJ" + compact[3:], compact[strings.IndexByte(compact, '.'):],
		compact[signature:] + "." + compact[:signature-1], strings.ReplaceAll(compact, "-", "+"),
		compact[signature:signature+100] + "+" + compact[signature+100:signature+200],
	} {
		for _, around := range []string{"%s", "/%s/x.ts", "https://media.example.com/%s?a=%%2F", `{"uri":"%s"}`} {
			text := fmt.Sprintf(around, text)
			wantRedacted(t, text, Tokens(text), compact)
		}
	}
}

// plainTexts are texts from the logs of a video server.
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
	"/heyJude.mp3", "/monkeyJar/1.ts", "eyJ", "eyJhbGciOiJSUzI1NiJ9", // not a token without a dot
	`{"level":"info","msg":"handled request","request":{"method":"GET","uri":"/demo/x.ts"}}`,
	"dial tcp 127.0.0.1:8081: connect: connection refused", "signature_invalid: token: invalid signature",
	strings.Repeat("a", 128), strings.Repeat("a", 64) + "." + strings.Repeat("b", 64) + "." + strings.Repeat("c", 64),
	"\x00\xff\xfe", "漢字.漢字.漢字", strings.Repeat("%25", 30),
}

// A text without a token is logged unchanged: a log without the names of
// segments is useless.
func TestPlainTextsStay(t *testing.T) {
	t.Parallel()
	for _, text := range plainTexts {
		if got := Tokens(text); got != text {
			t.Errorf("%q becomes %q", text, got)
		}
	}
	for _, a := range plainTexts {
		for _, b := range plainTexts {
			if text := a + " " + b; Tokens(text) != text {
				t.Errorf("%q becomes %q", text, Tokens(text))
			}
		}
	}
}

// The attack: a request line of nested escapes, which must be logged. A filter
// that decodes them one by one needs memory and time by the square of their
// number.
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
		const most = 32
		if n := testing.AllocsPerRun(1, func() { Tokens(text) }); n > most {
			t.Errorf("%s: %v allocations, want at most %d", name, n, most)
		}
	}
}

func TestPlainTextsAllocateNothing(t *testing.T) {
	const text = "/demo/video/1080/seg_000123.m4s?a=b"
	if n := testing.AllocsPerRun(100, func() { Tokens(text) }); n != 0 {
		t.Errorf("%v allocations for a path without a token, want none", n)
	}
}

func TestTokenID(t *testing.T) {
	t.Parallel()
	for token, want := range map[string]string{"": "", "abc": "ba7816bf8f01cfea"} { // FIPS 180-2, B.1
		if got := TokenID(token); got != want {
			t.Errorf("TokenID(%q) = %q, want %q", token, got, want)
		}
	}
}

// For every escape of a token and every text around it, the result has no signature,
// redacting the result again changes nothing, and short words stay.
func FuzzTokens(f *testing.F) {
	f.Add("/", "/x.ts", ".", "", false, uint16(0))
	f.Add("https://media.example.com/", "?a=%2F", "eyJ", ".", true, uint16(10))
	f.Add("%", "%zz", tokenAlphabet, "", false, uint16(0))
	f.Add("%2", "%2", "", "%", true, uint16(250))
	f.Add("", "%zz", "e", "", false, uint16(242))
	f.Add("eyJ.", ".eyJ", "", "", false, uint16(0))
	sets := []string{".", "e", "eyJ.", "-_.", "aAbBcC%", tokenAlphabet + "%", "%", ""}
	for i, text := range plainTexts {
		f.Add(text, plainTexts[(7*i+1)%len(plainTexts)], sets[i%8], sets[i/8%8], i%2 == 0, uint16(i*13%300))
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
		wantRedacted(t, text, Tokens(text), compact)
		wantRedacted(t, text, Line(text), compact)
		around := before + behind
		redacted := Tokens(around)
		wantRedacted(t, around, redacted, compact)
		words := strings.FieldsFunc(around, func(r rune) bool { return r >= 0x80 || !isTokenCharacter(byte(r)) })
		if redacted != around && !slices.ContainsFunc(words, func(word string) bool { return len(word) >= minRedacted }) {
			t.Errorf("%q becomes %q, without a word of %d characters in it", around, redacted, minRedacted)
		}
	})
}
