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
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/signed-playback/caddy-signed-playback/internal/redact"
)

// inLine returns a field as JSON in a line of the log.
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
// in the log. All others stay unchanged.
func TestFilteredFields(t *testing.T) {
	t.Parallel()
	compact := plainToken()
	id := redact.TokenID(compact)
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

// In Caddy's own logging, the access log and the error log lose nothing except
// the tokens, in both formats and with both ways to configure the filter.
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
					for _, want := range []string{"/" + redact.TokenID(compact) + "/x.ts", "https://media.example.net/" + redact.TokenID(compact) + "/iframe"} {
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
