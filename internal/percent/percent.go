// Package percent reads percent-encoding (RFC 3986 section 2.1) one octet at a
// time, for code that decides about each encoded octet on its own.
package percent

// Octet returns the octet that the percent-encoding at the start of s stands
// for. ok is false if s does not start with a percent sign and two hexadecimal
// digits of either case. A percent-encoding always takes three bytes of s.
func Octet[Text ~string | ~[]byte](s Text) (octet byte, ok bool) {
	if len(s) < 3 || s[0] != '%' {
		return 0, false
	}
	high, okHigh := digit(s[1])
	low, okLow := digit(s[2])
	return high<<4 | low, okHigh && okLow
}

func digit(c byte) (value byte, ok bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}
