package signedplayback

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/signed-playback/caddy-signed-playback/internal/redact"
)

var lineConfig = zapcore.EncoderConfig{SkipLineEnding: true}

// inLine returns a field as JSON in a line of the log.
func inLine(t *testing.T, field zapcore.Field) string {
	t.Helper()
	line, err := zapcore.NewJSONEncoder(lineConfig).EncodeEntry(zapcore.Entry{}, []zapcore.Field{field})
	if err != nil {
		t.Fatal(err)
	}
	return line.String()
}

// encoding returns an encoder of the log format around one of zap's.
func encoding(wrapped zapcore.Encoder) *LogEncoder {
	e := new(LogEncoder)
	e.wrap(wrapped)
	return e
}

// viewerURL is a stringer.
func viewerURL(compact string) *url.URL { return &url.URL{Path: "/" + compact + "/x.ts"} }

// nested is an object that handlers log.
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

// Fields of every type that can contain text are redacted and keep their shape
// in the log, by the filter, by the encoder, and where a logger has them for all of
// its lines. All others stay unchanged.
func TestRedactedFields(t *testing.T) {
	t.Parallel()
	compact := plainToken()
	id := redact.TokenID(compact)
	inner := `"uri":"/` + id + `/x.ts","status":200,"duration":1000000000,"uris":["` + id + `",true],"inner":{"token":"` + id + `"}`
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
		"object":               {zap.Object("f", nested{compact}), `{"f":{` + inner + `}}`},
		"object within itself": {zap.Inline(nested{compact}), `{` + inner + `}`},
		"objects":              {zap.Objects("f", []nested{{compact}}), `{"f":[{` + inner + `}]}`},
		"fields":               {zap.Dict("f", zap.String("uri", compact), zap.Int("n", 1)), `{"f":{"uri":"` + id + `","n":1}}`},
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

		"a token as a name":          {zap.String(compact, "a"), `{"` + id + `":"a"}`},
		"a token as a header's name": {zap.Object("f", caddyhttp.LoggableHTTPHeader{Header: http.Header{compact: is("a")}}), `{"f":{"` + id + `":["a"]}}`},
		"a token as a map's key":     {zap.Any("f", map[string]any{compact: 1}), `{"f":{"` + id + `":1}}`},
		"escapes of JSON":            {zap.Any("f", json.RawMessage(`"`+strings.ReplaceAll(compact, ".", `\u002e`)+`"`)), `{"f":"` + id + `"}`},
		"logged credentials": {
			zap.Object("f", caddyhttp.LoggableHTTPHeader{Header: http.Header{"Authorization": is("Bearer x"), "Cookie": is("a=b", "c=d")}, ShouldLogCredentials: true}),
			`{"f":{"Authorization":["REDACTED"],"Cookie":["REDACTED"]}}`,
		},
		"credentials as FastCGI has them": {
			zap.Any("f", map[string]string{"HTTP_X_AUTH_KEY": "secret", "HTTP_AUTHORIZATION": "Bearer x", "HTTP_X_AUTH_EMAIL": "a"}),
			`{"f":{"HTTP_X_AUTH_KEY":["REDACTED"],"HTTP_AUTHORIZATION":["REDACTED"],"HTTP_X_AUTH_EMAIL":"a"}}`,
		},
		"a credential as text":     {zap.String("x-auth-key", "secret"), `{"x-auth-key":"REDACTED"}`},
		"a marshaler that fails":   {zap.Object("f", zapcore.ObjectMarshalerFunc(func(zapcore.ObjectEncoder) error { return errors.New("no " + compact) })), `{"f":{},"fError":"no ` + id + `"}`},
		"a value that is not JSON": {zap.Any("f", map[string]any{"a": (func())(nil), "b": compact}), `{"f":"map[a:<nil> b:` + id + `]"}`},

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
			ofLogger := encoding(zapcore.NewJSONEncoder(lineConfig)).Clone()
			tc.field.AddTo(ofLogger)
			for way, line := range map[string]string{
				"filter":  inLine(t, LogFilter{}.Filter(tc.field)),
				"encoder": must(encoding(zapcore.NewJSONEncoder(lineConfig)).EncodeEntry(zapcore.Entry{}, []zapcore.Field{tc.field})).String(),
				"logger":  must(ofLogger.EncodeEntry(zapcore.Entry{}, nil)).String(),
			} {
				var got, want any
				if err := errors.Join(json.Unmarshal([]byte(line), &got), json.Unmarshal([]byte(tc.want), &want)); err != nil {
					t.Errorf("%s: %v: %s", way, err, line)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s: the field (-want +got):\n%s", way, diff)
				}
			}
		})
	}
	if request.RequestURI != "/"+compact+"/x.ts?a=b" || request.Header.Get("X-Token") != compact {
		t.Error("the filter has changed the request itself")
	}
}

// The encoder also redacts text outside of fields. The replacement cannot become syntax
// of the line.
func TestRedactedLines(t *testing.T) {
	t.Parallel()
	compact := plainToken()
	id := redact.TokenID(compact)
	escaped := compact + "%22%7D%0A"
	config := zapcore.EncoderConfig{MessageKey: "msg", NameKey: "logger", StacktraceKey: "stack", SkipLineEnding: true}
	entry := zapcore.Entry{Message: "GET /" + compact + "/x.ts", LoggerName: "a." + compact, Stack: "panic: " + compact + "\n\tx.go:1"}
	line := must(encoding(zapcore.NewJSONEncoder(config)).EncodeEntry(entry, []zapcore.Field{zap.Int(escaped, 1), zap.Namespace(compact), zap.Bool("b", true)})).String()
	want := `{"logger":"` + redact.TokenID("a."+compact) + `","msg":"GET /` + id + `/x.ts","` + redact.TokenID(escaped) + `":1,"` +
		id + `":{"b":true},"stack":"panic: ` + id + `\n\tx.go:1"}`
	if diff := cmp.Diff(want, line); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
	line = must(encoding(zapcore.NewConsoleEncoder(config)).EncodeEntry(entry, []zapcore.Field{zap.String("uri", compact)})).String()
	if want := redact.TokenID("a."+compact) + "\tGET /" + id + "/x.ts\t{\"uri\": \"" + id + "\"}\npanic: " + id + "\n\tx.go:1"; line != want {
		t.Errorf("console: %q, want %q", line, want)
	}
}

// In Caddy's own logging, the access log and the error log lose nothing except
// the tokens, with the encoder and the filter in all the ways to configure them.
func TestTokensInCaddysLogs(t *testing.T) {
	const filter = `{"format": "filter", "wrap": {"format": %q}, "fields": {%s}}`
	for name, encoder := range map[string]string{
		"encoder":                   `{"format": "signed_playback"}`,
		"encoder, JSON":             `{"format": "signed_playback", "wrap": {"format": "json", "time_format": "iso8601"}}`,
		"encoder, console":          `{"format": "signed_playback", "wrap": {"format": "console"}}`,
		"encoder around a filter":   `{"format": "signed_playback", "wrap": {"format": "filter", "fields": {"request>host": {"filter": "delete"}}}}`,
		"encoder within append":     `{"format": "append", "wrap": {"format": "signed_playback"}, "fields": {"node": "one"}}`,
		"filter of fields":          fmt.Sprintf(filter, "json", `"request>uri": {"filter": "signed_playback"}, "request>headers": {"filter": "signed_playback"}`),
		"filter of fields, console": fmt.Sprintf(filter, "console", `"request>uri": {"filter": "signed_playback"}, "request>headers>Referer": {"filter": "signed_playback"}`),
		"filter of an object":       fmt.Sprintf(filter, "json", `"request": {"filter": "signed_playback"}`),
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "log")
			server := serversOf(t, gatedServer(t, file, `, "level": "DEBUG", "encoder": `+encoder, "", "", "", answersPlaylist))["playback"]
			tokens := []string{plainToken(), signedWithRules(blocksAll)}
			for _, compact := range tokens {
				r := httptest.NewRequest(http.MethodGet, "/"+compact+"/x.ts", nil)
				r.Header.Set("Referer", "https://media.example.net/"+compact+"/iframe")
				r.Header.Set("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36")
				server.ServeHTTP(httptest.NewRecorder(), r)
			}
			log := string(must(os.ReadFile(file)))
			wants := []string{"handled request", "rule_blocked: an access rule", "GET", "AppleWebKit/537.36", "signed_playback_token_id"}
			for _, compact := range tokens {
				wants = append(wants, "/"+redact.TokenID(compact)+"/x.ts", "https://media.example.net/"+redact.TokenID(compact)+"/iframe")
			}
			for _, want := range wants {
				if !strings.Contains(log, want) || strings.Contains(log, "eyJ") {
					t.Errorf("want %s and no part of a token in the log:\n%s", want, log)
				}
			}
		})
	}
}

// handlersWithoutLine are the handlers of Caddy that TestHandlersLogNoTokens leaves
// out, and why.
var handlersWithoutLine = map[string]string{
	"acme_server":        "it makes a certificate authority, and gets no playback URLs",
	"panicking_in_tests": "TestPanicIsLoggedWithoutTheToken has it",
}

// The attack: at debug level, handlers log URLs in fields of many names. With the
// log format, no line of any logger has a token, whatever the fields are. The log
// `raw` shows that there are some.
func TestHandlersLogNoTokens(t *testing.T) {
	dir := t.TempDir()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Copy", r.Header.Get("Referer"))
		w.Header().Set("Location", r.Header.Get("Referer"))
	}))
	defer upstream.Close()
	text := string(must(os.ReadFile("testdata/every_handler.caddyfile")))
	adapted := adapt(t, strings.NewReplacer("DIR", dir, "UPSTREAM", upstream.URL).Replace(text))
	if err := os.WriteFile(filepath.Join(dir, "key.json"), []byte(publicJWK(testKey())), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, module := range caddy.GetModules("http.handlers") {
		name := module.ID.Name()
		if _, left := handlersWithoutLine[name]; !left && !strings.Contains(adapted, `"handler": "`+name+`"`) && name != "signed_playback_api" {
			t.Errorf("testdata/every_handler.caddyfile does not have the handler %s, which may log tokens", name)
		}
	}
	server := serversOf(t, adapted)["srv0"]
	compact := plainToken()
	for _, place := range regexp.MustCompile(`handle_path (/\w+)/`).FindAllStringSubmatch(text, -1) {
		for _, path := range []string{"/" + compact + "/x.ts", "/" + signedWithRules(blocksAll) + "/x.ts", "/demo/" + compact, "/" + compact, "/" + compact + "/"} {
			r := httptest.NewRequest(http.MethodGet, "http://media.example.net"+place[1]+path+"?token="+compact, strings.NewReader("body"))
			r.Header = http.Header{
				"Referer": is("https://media.example.net/" + compact + "/iframe"), "X-" + compact: is("a"), "Cookie": is("a=" + compact), "Authorization": is("Bearer " + compact),
				"X-Auth-Key": is("the-secret"), "If-None-Match": is(compact), "Range": is(compact), "Accept-Encoding": is(compact), "User-Agent": is(compact),
			}
			server.ServeHTTP(httptest.NewRecorder(), r)
		}
	}
	if leaks := tokenFields(t, filepath.Join(dir, "redacted.log")); len(leaks) > 0 {
		t.Errorf("these fields have tokens: %q", leaks)
	}
	raw := tokenFields(t, filepath.Join(dir, "raw.log"))
	for _, logger := range []string{"http.log.access", "http.log.error", "http.handlers.reverse_proxy", "http.handlers.rewrite", "http.handlers.file_server", "http.reverse_proxy.transport.fastcgi"} {
		if !slices.ContainsFunc(raw, func(field string) bool { return strings.HasPrefix(field, logger) }) {
			t.Errorf("%s logs no token, so it shows nothing; those that do: %q", logger, raw)
		}
	}
	if len(raw) < 30 {
		t.Errorf("tokens are in %d fields only: %q", len(raw), raw)
	}
}

// tokenFields returns the fields of a log that have a part of a token or the API's
// secret, with the names of their loggers.
func tokenFields(t *testing.T, file string) (fields []string) {
	t.Helper()
	var find func(path string, value any)
	find = func(path string, value any) {
		switch value := value.(type) {
		case map[string]any:
			for key, element := range value {
				find(path+">", key)
				find(path+">"+key, element)
			}
		case []any:
			for _, element := range value {
				find(path, element)
			}
		case string:
			if (strings.Contains(value, "eyJ") || strings.Contains(value, "the-secret")) && !slices.Contains(fields, path) {
				fields = append(fields, path)
			}
		}
	}
	for line := range strings.Lines(string(must(os.ReadFile(file)))) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		logger, _ := entry["logger"].(string)
		find(logger, entry)
	}
	slices.Sort(fields)
	return fields
}

func BenchmarkLogEncoder(b *testing.B) {
	r := httptest.NewRequest(http.MethodGet, "/"+plainToken()+"/video/1080/seg_000123.m4s", nil)
	r.Header = http.Header{"Referer": is("https://www.example.com/watch"), "User-Agent": is("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"), "Range": is("bytes=0-99")}
	fields := []zapcore.Field{
		zap.Object("request", caddyhttp.LoggableHTTPRequest{Request: r}), zap.Duration("duration", time.Second), zap.Int("status", 200),
		zap.Object("resp_headers", caddyhttp.LoggableHTTPHeader{Header: http.Header{"Content-Type": is("video/mp4"), "Server": is("Caddy")}}),
	}
	for name, encoder := range map[string]zapcore.Encoder{
		"json": zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), "signed_playback": encoding(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				must(encoder.EncodeEntry(zapcore.Entry{Message: "handled request"}, fields)).Free()
			}
		})
	}
}
