package signedplayback

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/logging"
	"go.opentelemetry.io/otel/attribute"
	oteltrace "go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func init() {
	caddy.RegisterModule(LogFilter{})
}

// LogFilter replaces each token in a field of a log line by its token id, the
// first 16 hexadecimal digits of its SHA-256, which the gate logs as
// `signed_playback_token_id` too. A token opens its video to whoever reads it,
// so it must not be in a log.
//
// It is for the fields in which a URL of a viewer can stand, or for objects that
// contain them: `request` as a whole, or `request>uri` and `request>headers`,
// `resp_headers` for redirects, and what other handlers say at debug level.
//
//	format filter {
//		request>uri signed_playback
//		request>headers signed_playback
//		resp_headers signed_playback
//		uri signed_playback
//		from_path signed_playback
//		to_path signed_playback
//	}
//
// What looks like a token is replaced too, if it is none: the filter errs on
// the side of silence. Among headers, those with credentials of the control API
// are redacted, like Caddy's own filter redacts `Authorization`.
type LogFilter struct{}

// tokenFields are the fields of Caddy's log lines in which tokens can stand.
var tokenFields = [...]string{
	"request>uri",
	"request>headers", // Referer, and what a CDN in front adds
	"resp_headers",    // Location, where Caddy sends viewers from HTTP to HTTPS
	"uri",             // of rewrite, at debug level, as the two below
	"from_path",
	"to_path",
}

// CaddyModule returns the Caddy module information.
func (LogFilter) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "caddy.logging.encoders.filter.signed_playback",
		New: func() caddy.Module { return new(LogFilter) },
	}
}

// UnmarshalCaddyfile sets up the filter from Caddyfile tokens. It has no
// options.
func (*LogFilter) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the filter's name
	if d.NextArg() || d.NextBlock(d.Nesting()) {
		return d.Errf("unexpected %q; the log filter signed_playback has no options", d.Val())
	}
	return nil
}

// Filter implements logging.LogFieldFilter.
func (LogFilter) Filter(in zapcore.Field) zapcore.Field {
	switch in.Type {
	case zapcore.StringType:
		in.String = redactTokens(in.String)
		return in
	case zapcore.ObjectMarshalerType, zapcore.ArrayMarshalerType, zapcore.InlineMarshalerType:
		if values, ok := in.Interface.(caddyhttp.LoggableStringArray); ok {
			in.Interface = caddyhttp.LoggableStringArray(redactEach(values))
			return in
		}
		return redactFields(in)
	case zapcore.StringerType, zapcore.ErrorType:
		return redactFields(in)
	case zapcore.ByteStringType, zapcore.BinaryType:
		if value, ok := in.Interface.([]byte); ok {
			in.Interface = []byte(redactTokens(string(value)))
		}
		return in
	case zapcore.ReflectType:
		return redactReflected(in)
	default:
		return in // numbers, times and the like
	}
}

// redactReflected redacts a value that encoders write as JSON.
func redactReflected(in zapcore.Field) zapcore.Field {
	var value any
	data, err := json.Marshal(in.Interface)
	if err == nil {
		decoder := json.NewDecoder(bytes.NewReader(data))
		decoder.UseNumber()
		err = decoder.Decode(&value)
	}
	if err != nil {
		return zap.String(in.Key, redactTokens(fmt.Sprint(in.Interface)))
	}
	return zap.Reflect(in.Key, redactValue(value))
}

// redactFields redacts what is within a field of more than one value.
func redactFields(in zapcore.Field) zapcore.Field {
	fields := zapcore.NewMapObjectEncoder()
	in.AddTo(fields)
	if len(fields.Fields) == 1 && in.Type != zapcore.InlineMarshalerType {
		return zap.Any(in.Key, redactValue(fields.Fields[in.Key]))
	}
	return zap.Inline(zapcore.ObjectMarshalerFunc(func(enc zapcore.ObjectEncoder) error {
		for _, key := range slices.Sorted(maps.Keys(fields.Fields)) {
			zap.Any(key, redactValue(fields.Fields[key])).AddTo(enc)
		}
		return nil
	}))
}

// redactValue redacts the strings in a value as zap's map encoder, or a caller
// of zap.Any, has it.
func redactValue(value any) any {
	switch value := value.(type) {
	case string:
		return redactTokens(value)
	case []string:
		return redactEach(value)
	case []any:
		redacted := make([]any, len(value))
		for i, element := range value {
			redacted[i] = redactValue(element)
		}
		return redacted
	case map[string]any:
		redacted := make(map[string]any, len(value))
		for key, element := range value {
			if slices.Contains(credentialHeaders, http.CanonicalHeaderKey(key)) {
				redacted[key] = []string{"REDACTED"} // as Caddy does for Authorization
				continue
			}
			redacted[key] = redactValue(element)
		}
		return redacted
	}
	return value
}

// credentialHeaders carry the credentials of the control API that Caddy does not
// know for what they are, in the canonical form.
var credentialHeaders = []string{"X-Auth-Key", "X-Auth-User-Service-Key"}

func redactEach(values []string) []string {
	redacted := make([]string, len(values))
	for i, value := range values {
		redacted[i] = redactTokens(value)
	}
	return redacted
}

// redactTokens replaces each token in a text by its id. It knows them by their
// characters, so that it finds one wherever it stands, escaped or cut short.
func redactTokens(text string) string { return redactRuns(text, true) }

// redactRuns looks at each run of token characters, and also at what it is
// without its escapes.
func redactRuns(text string, mayBeEscaped bool) string {
	var redacted strings.Builder
	kept := 0 // up to where text has been copied
	for start := 0; start < len(text); start++ {
		end := start
		for end < len(text) && isTokenCharacter(text[end]) {
			end++
		}
		if end == start {
			continue
		}
		if id, ok := redactionOf(text[start:end], mayBeEscaped); ok {
			redacted.WriteString(text[kept:start])
			redacted.WriteString(id)
			kept = end
		}
		start = end
	}
	if kept == 0 {
		return text
	}
	redacted.WriteString(text[kept:])
	return redacted.String()
}

// isTokenCharacter tells the characters of tokens: base64url, dots, percent
// escapes, and of the other alphabet what is no separator.
func isTokenCharacter(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		c == '-' || c == '_' || c == '.' || c == '%' || c == '+'
}

const (
	// headerStart is how `{"`, with which every header begins, looks in base64.
	headerStart = "eyJ"

	// maxName is how long a name may be that is no part of a token: a SHA-512
	// in hexadecimal digits. A signature is longer.
	maxName = 128

	minRedacted = 16
)

// redactionOf returns what stands for a run of token characters, if it is a
// token, or a part of one that would help to guess it.
func redactionOf(run string, mayBeEscaped bool) (id string, ok bool) {
	if mayBeEscaped && strings.Contains(run, "%") {
		plain := unescape(run)
		redacted := redactRuns(plain, false)
		return redacted, redacted != plain
	}
	if len(run) < minRedacted {
		return "", false
	}
	if strings.Contains(run, headerStart) && (strings.Contains(run, ".") || len(run) > maxName) {
		return tokenID(run), true
	}
	for segment := range strings.SplitSeq(run, ".") {
		if len(segment) > maxName {
			return tokenID(run), true
		}
	}
	return "", false
}

// unescape resolves percent escapes, also those of escapes, and leaves what is
// none: a viewer who adds one must not get the token past the filter. What is
// escaped once more than anybody does is as good as cut off.
func unescape(s string) string {
	const depth = 4
	for range depth {
		if !strings.Contains(s, "%") {
			break
		}
		plain := make([]byte, 0, len(s))
		for i := 0; i < len(s); i++ {
			c, ok := escaped(s[i:])
			if ok {
				i += 2
			} else {
				c = s[i]
			}
			plain = append(plain, c)
		}
		if len(plain) == len(s) {
			break
		}
		s = string(plain)
	}
	return s
}

// escaped returns what the escape at the start of a text stands for.
func escaped(s string) (c byte, ok bool) {
	if len(s) < 3 || s[0] != '%' {
		return 0, false
	}
	n, err := strconv.ParseUint(s[1:3], 16, 8)
	return byte(n), err == nil
}

// holdsToken reports whether a token, or most of one, stands in a path.
func holdsToken(path string) bool {
	return strings.Contains(path, headerStart) && redactTokens(path) != path
}

// redactPanic returns what to go on panicking with for a handler that has
// panicked. Servers log that, and traces record it, in a message and not in a
// field, where no filter comes by; and behind the gate, the viewer's URL is still
// there to panic with, in the request's context. Where the handler has panicked is
// kept: the stack that is logged reaches down to it.
func redactPanic(p any) any {
	switch p.(type) {
	case string, error, fmt.Stringer:
		// %+v is how slog writes errors; some of them say more then.
		for _, format := range []string{"%v", "%+v"} {
			text := fmt.Sprintf(format, p)
			if redacted := redactTokens(text); redacted != text {
				return redacted
			}
		}
		return p
	}
	// Bytes are written as numbers, in which nobody knows a token.
	return fmt.Sprintf("a value of type %T", p)
}

// redactSpan has traces say what log lines say of a request's path.
func redactSpan(span oteltrace.Span, path string) {
	span.SetAttributes(attribute.String("url.path", redactTokens(path)))
}

// Interface guards
var (
	_ logging.LogFieldFilter = LogFilter{}
	_ caddyfile.Unmarshaler  = (*LogFilter)(nil)
)
