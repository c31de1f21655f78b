package signedplayback

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/logging"
	"go.uber.org/zap"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"

	"github.com/signed-playback/caddy-signed-playback/internal/redact"
)

func init() {
	caddy.RegisterModule(new(LogEncoder))
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

	redactedObject // for the fields that a logger adds before the line
	wrapped        zapcore.Encoder
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
	e.wrapped, e.redactedObject = encoder, redactedObject{encoder}
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
	line, err := e.wrapped.EncodeEntry(entry, []zapcore.Field{redactFields(fields...)})
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

// redactFields returns a field that writes the fields to an encoder, redacted.
func redactFields(fields ...zapcore.Field) zapcore.Field {
	return zap.Inline(zapcore.ObjectMarshalerFunc(func(to zapcore.ObjectEncoder) error {
		for i := range fields {
			fields[i].AddTo(redactedObject{to})
		}
		return nil
	}))
}

// credentialHeaders are the headers with credentials: those that Caddy redacts
// itself unless it is told to log them, and those of the control API.
var credentialHeaders = []string{
	"Authorization", "Cookie", "Proxy-Authorization", "Set-Cookie", "X-Auth-Key", "X-Auth-User-Service-Key",
}

const redactedCredential = "REDACTED" // as Caddy writes it

// isCredential recognizes the name of a header, also as FastCGI spells it.
func isCredential(name string) bool {
	if variable, ok := strings.CutPrefix(name, "HTTP_"); ok {
		name = strings.ReplaceAll(variable, "_", "-")
	}
	return slices.ContainsFunc(credentialHeaders, func(header string) bool { return strings.EqualFold(header, name) })
}

// redactedObject passes an object to an encoder and redacts its text. Numbers,
// times and other values without text pass as they are.
type redactedObject struct {
	zapcore.ObjectEncoder `json:"-"`
}

// AddString implements zapcore.ObjectEncoder, as the methods below do.
func (o redactedObject) AddString(key, value string) {
	if isCredential(key) {
		value = redactedCredential
	}
	o.ObjectEncoder.AddString(redact.Tokens(key), redact.Tokens(value))
}

func (o redactedObject) AddByteString(key string, value []byte) {
	o.AddString(key, string(value))
}

func (o redactedObject) AddBinary(key string, value []byte) {
	o.ObjectEncoder.AddBinary(redact.Tokens(key), []byte(redact.Tokens(string(value))))
}

func (o redactedObject) AddArray(key string, value zapcore.ArrayMarshaler) error {
	if isCredential(key) {
		return o.ObjectEncoder.AddReflected(key, []string{redactedCredential})
	}
	return o.ObjectEncoder.AddArray(redact.Tokens(key), redactArray(value))
}

func (o redactedObject) AddObject(key string, value zapcore.ObjectMarshaler) error {
	return o.ObjectEncoder.AddObject(redact.Tokens(key), redactObject(value))
}

func (o redactedObject) AddReflected(key string, value any) error {
	if probe, ok := value.(*logProbe); ok {
		probe.redacted++
		return nil
	}
	if isCredential(key) {
		value = []string{redactedCredential}
	}
	return o.ObjectEncoder.AddReflected(redact.Tokens(key), redactReflected(value))
}

func redactObject(value zapcore.ObjectMarshaler) zapcore.ObjectMarshaler {
	return zapcore.ObjectMarshalerFunc(func(to zapcore.ObjectEncoder) error {
		return value.MarshalLogObject(redactedObject{to})
	})
}

func redactArray(value zapcore.ArrayMarshaler) zapcore.ArrayMarshaler {
	return zapcore.ArrayMarshalerFunc(func(to zapcore.ArrayEncoder) error {
		return value.MarshalLogArray(redactedElements{to})
	})
}

// redactedElements is redactedObject for the elements of an array.
type redactedElements struct{ zapcore.ArrayEncoder }

func (e redactedElements) AppendString(value string) {
	e.ArrayEncoder.AppendString(redact.Tokens(value))
}

func (e redactedElements) AppendByteString(value []byte) { e.AppendString(string(value)) }

func (e redactedElements) AppendArray(value zapcore.ArrayMarshaler) error {
	return e.ArrayEncoder.AppendArray(redactArray(value))
}

func (e redactedElements) AppendObject(value zapcore.ObjectMarshaler) error {
	return e.ArrayEncoder.AppendObject(redactObject(value))
}

func (e redactedElements) AppendReflected(value any) error {
	return e.ArrayEncoder.AppendReflected(redactReflected(value))
}

// redactReflected redacts a value that encoders write as JSON.
func redactReflected(value any) any {
	var decoded any
	data, err := json.Marshal(value)
	if err == nil {
		decoder := json.NewDecoder(bytes.NewReader(data))
		decoder.UseNumber()
		err = decoder.Decode(&decoded)
	}
	if err != nil {
		return redact.Tokens(fmt.Sprint(value))
	}
	return redactJSON(decoded)
}

// redactJSON redacts the text in a value from encoding/json.
func redactJSON(value any) any {
	switch value := value.(type) {
	case string:
		return redact.Tokens(value)
	case []any:
		for i, element := range value {
			value[i] = redactJSON(element)
		}
	case map[string]any:
		redacted := make(map[string]any, len(value))
		for key, element := range value {
			if isCredential(key) {
				element = []string{redactedCredential}
			} else {
				element = redactJSON(element)
			}
			redacted[redact.Tokens(key)] = element
		}
		return redacted
	}
	return value
}

// Interface guards
var (
	_ zapcore.Encoder                  = (*LogEncoder)(nil)
	_ caddy.Provisioner                = (*LogEncoder)(nil)
	_ caddy.ConfiguresFormatterDefault = (*LogEncoder)(nil)
	_ caddyfile.Unmarshaler            = (*LogEncoder)(nil)
)

// logProbe finds out whether a log redacts the URI of a request.
type logProbe struct{ encoders, redacted int }

// field returns a field for the log.
func (p *logProbe) field() zapcore.Field {
	return zap.Inline(zapcore.ObjectMarshalerFunc(func(to zapcore.ObjectEncoder) error {
		p.encoders++
		return to.AddObject("request", zapcore.ObjectMarshalerFunc(func(to zapcore.ObjectEncoder) error {
			return to.AddReflected("uri", p) // redactedObject recognizes it
		}))
	}))
}
