package signedplayback

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/logging"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"

	"github.com/signed-playback/caddy-signed-playback/internal/redact"
)

func init() {
	caddy.RegisterModule(new(LogEncoder))
	caddy.RegisterModule(LogFilter{})
}

// LogEncoder is a log format that replaces each token in a line of the log by its
// token id, the first 16 hexadecimal digits of its SHA-256, which the gate logs as
// `signed_playback_token_id` too. A token opens its video to everybody who reads
// it, so it must not be in a log.
//
// The encoder redacts the message, the stack trace and every field, whatever its
// name. Headers with credentials become `REDACTED`, even if the server logs
// credentials. In doubt the encoder replaces too much: also text that only looks
// like a token.
type LogEncoder struct {
	// The encoder that writes the redacted line. Default: `json`, or `console` if
	// the log goes to a terminal.
	WrappedRaw json.RawMessage `json:"wrap,omitempty" caddy:"namespace=caddy.logging.encoders inline_key=format"`

	redact.Object // for the fields that a logger adds before the line
	wrapped       zapcore.Encoder
}

// CaddyModule returns the Caddy module information.
func (*LogEncoder) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "caddy.logging.encoders.signed_playback",
		New: func() caddy.Module { return new(LogEncoder) },
	}
}

// Provision loads the wrapped encoder.
func (e *LogEncoder) Provision(ctx caddy.Context) error {
	if e.WrappedRaw == nil {
		// Without fields, it only chooses between json and console.
		encoder := new(logging.FilterEncoder)
		e.wrap(encoder)
		return encoder.Provision(ctx)
	}
	encoder, err := ctx.LoadModule(e, "WrappedRaw")
	if err != nil {
		return fmt.Errorf("loading the encoder that signed_playback wraps: %w", err)
	}
	e.wrap(encoder.(zapcore.Encoder))
	return nil
}

func (e *LogEncoder) wrap(encoder zapcore.Encoder) {
	e.wrapped, e.Object = encoder, redact.Object{ObjectEncoder: encoder}
}

// ConfigureDefaultFormat implements caddy.ConfiguresFormatterDefault.
func (e *LogEncoder) ConfigureDefaultFormat(to caddy.WriterOpener) error {
	if wrapped, ok := e.wrapped.(caddy.ConfiguresFormatterDefault); ok {
		return wrapped.ConfigureDefaultFormat(to)
	}
	return nil
}

// UnmarshalCaddyfile sets up the encoder from Caddyfile tokens. Syntax:
//
//	format signed_playback [<encoder>] {
//	    <options of the encoder>
//	}
//
// The encoder is json, console, or any other that writes lines of a log.
func (e *LogEncoder) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the encoder's name
	if !d.NextArg() {
		if d.NextBlock(d.Nesting()) {
			return d.Errf("unexpected %q; options belong to an encoder, as in `format signed_playback json { … }`", d.Val())
		}
		return nil
	}
	name := d.Val()
	module, err := caddyfile.UnmarshalModule(d, "caddy.logging.encoders."+name)
	if err != nil {
		return err
	}
	encoder, ok := module.(zapcore.Encoder)
	if _, itself := module.(*LogEncoder); !ok || itself {
		return d.Errf("format signed_playback %q: want json, console or another encoder", name)
	}
	e.WrappedRaw = caddyconfig.JSONModuleObject(encoder, "format", name, nil)
	return nil
}

// Clone implements zapcore.Encoder.
func (e *LogEncoder) Clone() zapcore.Encoder {
	clone := new(LogEncoder)
	clone.wrap(e.wrapped.Clone())
	return clone
}

// EncodeEntry implements zapcore.Encoder.
func (e *LogEncoder) EncodeEntry(entry zapcore.Entry, fields []zapcore.Field) (*buffer.Buffer, error) {
	entry.Message = redact.Tokens(entry.Message)
	entry.Stack = redact.Tokens(entry.Stack)
	line, err := e.wrapped.EncodeEntry(entry, []zapcore.Field{redact.Fields(fields...)})
	if err != nil {
		return nil, errors.New(redact.Tokens(err.Error())) // zap writes it to standard error
	}
	// Names of fields and loggers can contain tokens too.
	text := line.String()
	if redacted := redact.Line(text); redacted != text {
		line.Reset()
		line.AppendString(redacted)
	}
	return line, nil
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

// Interface guards
var (
	_ zapcore.Encoder                  = (*LogEncoder)(nil)
	_ caddy.Provisioner                = (*LogEncoder)(nil)
	_ caddy.ConfiguresFormatterDefault = (*LogEncoder)(nil)
	_ caddyfile.Unmarshaler            = (*LogEncoder)(nil)
	_ logging.LogFieldFilter           = LogFilter{}
	_ caddyfile.Unmarshaler            = (*LogFilter)(nil)
)
