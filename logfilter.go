package signedplayback

import (
	"fmt"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/logging"
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
// Name the fields that can contain a viewer's URL, or objects that contain them.
// Every other field stays as it is, and at debug level handlers log URLs under many
// names. LogEncoder redacts all fields, so prefer it: `format signed_playback`.
//
//	format filter {
//		request>uri signed_playback
//		request>headers signed_playback
//		resp_headers signed_playback
//	}
//
// In doubt the filter replaces too much: also text that only looks like a token.
// Headers with credentials are redacted as a whole.
type LogFilter struct{}

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
func (LogFilter) Filter(in zapcore.Field) zapcore.Field { return redact.Fields(in) }

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
