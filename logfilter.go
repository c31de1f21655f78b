package signedplayback

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/logging"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/signed-playback/caddy-signed-playback/internal/redact"
)

func init() {
	caddy.RegisterModule(LogFilter{})
}

// LogFilter replaces each token in a field of a log line by its token id, the
// first 16 hexadecimal digits of its SHA-256, which the gate logs as
// `signed_playback_token_id` too. A token opens its video to everybody who reads
// it, so it must not be in a log.
//
// Apply it to the fields that can contain a viewer's URL, or to objects that
// contain them: `request` as a whole, or `request>uri` and `request>headers`,
// `resp_headers` for redirects, and the fields of other handlers at debug level.
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
// In doubt the filter replaces too much: also text that only looks like a token.
// Headers with credentials of the control API are redacted as a whole, as
// Caddy's own filter redacts `Authorization`.
type LogFilter struct{}

// tokenFields are the fields of Caddy's log lines that can contain tokens.
var tokenFields = [...]string{
	"request>uri",
	"request>headers", // Referer, and headers that a CDN in front adds
	"resp_headers",    // Location, where Caddy redirects from HTTP to HTTPS
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

// UnmarshalCaddyfile sets up the filter from Caddyfile tokens. Syntax:
//
//	<field> signed_playback
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
		in.String = redact.Tokens(in.String)
		return in
	case zapcore.ObjectMarshalerType, zapcore.ArrayMarshalerType, zapcore.InlineMarshalerType,
		zapcore.StringerType, zapcore.ErrorType:
		return redactFields(in)
	case zapcore.ByteStringType, zapcore.BinaryType:
		if value, ok := in.Interface.([]byte); ok {
			in.Interface = []byte(redact.Tokens(string(value)))
		}
		return in
	case zapcore.ReflectType:
		return redactReflected(in)
	default:
		return in // numbers, times and other values without text
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
		return zap.String(in.Key, redact.Tokens(fmt.Sprint(in.Interface)))
	}
	return zap.Reflect(in.Key, redactValue(value))
}

// redactFields redacts the values of a field that can have more than one.
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

// redactValue redacts the strings in a value from zap's map encoder or from
// encoding/json.
func redactValue(value any) any {
	switch value := value.(type) {
	case string:
		return redact.Tokens(value)
	case []string:
		return redact.Each(value)
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

// credentialHeaders are the headers with credentials of the control API that
// Caddy's own filter does not redact, in canonical form.
var credentialHeaders = []string{"X-Auth-Key", "X-Auth-User-Service-Key"}

// redactPanic returns the value to panic with again after a handler has
// panicked. Servers log it and traces record it as a message, which no filter
// sees, and handlers behind the gate can read the viewer's URL from the request's
// context. The logged stack still reaches down to the handler.
func redactPanic(p any) any {
	switch p.(type) {
	case string, error, fmt.Stringer:
		// slog writes errors with %+v, which some of them extend.
		for _, format := range []string{"%v", "%+v"} {
			text := fmt.Sprintf(format, p)
			if redacted := redact.Tokens(text); redacted != text {
				return redacted
			}
		}
		return p
	}
	// Bytes are logged as numbers, which are not recognized as a token.
	return fmt.Sprintf("a value of type %T", p)
}

// Interface guards
var (
	_ logging.LogFieldFilter = LogFilter{}
	_ caddyfile.Unmarshaler  = (*LogFilter)(nil)
)
