package redact

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Fields returns a field that writes the fields to an encoder, redacted.
func Fields(fields ...zapcore.Field) zapcore.Field {
	return zap.Inline(zapcore.ObjectMarshalerFunc(func(to zapcore.ObjectEncoder) error {
		for i := range fields {
			fields[i].AddTo(Object{to})
		}
		return nil
	}))
}

// credentialHeaders are the headers with credentials: those that Caddy redacts
// itself unless it is told to log them, and those of the control API.
var credentialHeaders = []string{
	"Authorization", "Cookie", "Proxy-Authorization", "Set-Cookie", "X-Auth-Key", "X-Auth-User-Service-Key",
}

const replacedCredential = "REDACTED" // as Caddy writes it

// isCredential recognizes the name of a header, also as FastCGI spells it.
func isCredential(name string) bool {
	if variable, ok := strings.CutPrefix(name, "HTTP_"); ok {
		name = strings.ReplaceAll(variable, "_", "-")
	}
	return slices.ContainsFunc(credentialHeaders, func(header string) bool { return strings.EqualFold(header, name) })
}

// Object passes an object to an encoder and redacts its text. Numbers,
// times and other values without text pass as they are.
type Object struct {
	zapcore.ObjectEncoder `json:"-"`
}

// AddString implements zapcore.ObjectEncoder, as the methods below do.
func (o Object) AddString(key, value string) {
	if isCredential(key) {
		value = replacedCredential
	}
	o.ObjectEncoder.AddString(Tokens(key), Tokens(value))
}

func (o Object) AddByteString(key string, value []byte) {
	o.AddString(key, string(value))
}

func (o Object) AddBinary(key string, value []byte) {
	o.ObjectEncoder.AddBinary(Tokens(key), []byte(Tokens(string(value))))
}

func (o Object) AddArray(key string, value zapcore.ArrayMarshaler) error {
	if isCredential(key) {
		return o.ObjectEncoder.AddReflected(key, []string{replacedCredential})
	}
	return o.ObjectEncoder.AddArray(Tokens(key), array(value))
}

func (o Object) AddObject(key string, value zapcore.ObjectMarshaler) error {
	return o.ObjectEncoder.AddObject(Tokens(key), object(value))
}

func (o Object) AddReflected(key string, value any) error {
	if probe, ok := value.(*Probe); ok {
		probe.Redacted++
		return nil
	}
	if isCredential(key) {
		value = []string{replacedCredential}
	}
	return o.ObjectEncoder.AddReflected(Tokens(key), reflected(value))
}

func object(value zapcore.ObjectMarshaler) zapcore.ObjectMarshaler {
	return zapcore.ObjectMarshalerFunc(func(to zapcore.ObjectEncoder) error {
		return value.MarshalLogObject(Object{to})
	})
}

func array(value zapcore.ArrayMarshaler) zapcore.ArrayMarshaler {
	return zapcore.ArrayMarshalerFunc(func(to zapcore.ArrayEncoder) error {
		return value.MarshalLogArray(elements{to})
	})
}

// elements is Object for the elements of an array.
type elements struct{ zapcore.ArrayEncoder }

func (e elements) AppendString(value string) {
	e.ArrayEncoder.AppendString(Tokens(value))
}

func (e elements) AppendByteString(value []byte) { e.AppendString(string(value)) }

func (e elements) AppendArray(value zapcore.ArrayMarshaler) error {
	return e.ArrayEncoder.AppendArray(array(value))
}

func (e elements) AppendObject(value zapcore.ObjectMarshaler) error {
	return e.ArrayEncoder.AppendObject(object(value))
}

func (e elements) AppendReflected(value any) error {
	return e.ArrayEncoder.AppendReflected(reflected(value))
}

// reflected redacts a value that encoders write as JSON.
func reflected(value any) any {
	var document any
	data, err := json.Marshal(value)
	if err == nil {
		decoder := json.NewDecoder(bytes.NewReader(data))
		decoder.UseNumber()
		err = decoder.Decode(&document)
	}
	if err != nil {
		return Tokens(fmt.Sprint(value))
	}
	return decodedJSON(document)
}

// decodedJSON redacts the text in a value from encoding/json.
func decodedJSON(value any) any {
	switch value := value.(type) {
	case string:
		return Tokens(value)
	case []any:
		for i, element := range value {
			value[i] = decodedJSON(element)
		}
	case map[string]any:
		object := make(map[string]any, len(value))
		for key, element := range value {
			if isCredential(key) {
				element = []string{replacedCredential}
			} else {
				element = decodedJSON(element)
			}
			object[Tokens(key)] = element
		}
		return object
	}
	return value
}

// Probe finds out whether a log redacts the URI of a request.
type Probe struct{ Encoders, Redacted int }

// Field returns a field for the log.
func (p *Probe) Field() zapcore.Field {
	return zap.Inline(zapcore.ObjectMarshalerFunc(func(to zapcore.ObjectEncoder) error {
		p.Encoders++
		return to.AddObject("request", zapcore.ObjectMarshalerFunc(func(to zapcore.ObjectEncoder) error {
			return to.AddReflected("uri", p) // Object recognizes it
		}))
	}))
}
