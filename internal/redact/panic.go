package redact

import "fmt"

// Panic returns the value to panic with again after a handler has
// panicked. Servers log it and traces record it as a message, which no filter
// sees, and handlers after the gate can read the viewer's URL from the request's
// context. The logged stack still reaches down to the handler.
func Panic(p any) any {
	switch p.(type) {
	case string, error, fmt.Stringer:
		// slog writes errors with %+v, which some of them extend.
		for _, format := range []string{"%v", "%+v"} {
			text := fmt.Sprintf(format, p)
			if redacted := Tokens(text); redacted != text {
				return redacted
			}
		}
		return p
	}
	// Bytes are logged as numbers, which are not recognized as a token.
	return fmt.Sprintf("a value of type %T", p)
}
