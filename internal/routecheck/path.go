package routecheck

import "strings"

// pathPattern is a pattern of Caddy's path matcher, which has * at its start, at
// its end, at both, or nowhere. Other patterns are not ok.
func pathPattern(pattern string) (text string, start, end, ok bool) {
	text, start = strings.CutPrefix(pattern, "*")
	text, end = strings.CutSuffix(text, "*")
	return text, start, end, !strings.ContainsAny(text, "*?[%")
}

// coversPath reports whether a pattern surely matches every path that another one
// matches.
func coversPath(pattern, other string) bool {
	text, start, end, ok := pathPattern(pattern)
	otherText, otherStart, otherEnd, otherOK := pathPattern(other)
	switch {
	case pattern == other:
		return true
	case !ok || !otherOK:
		return false
	case start && end:
		return strings.Contains(otherText, text)
	case start:
		return !otherEnd && strings.HasSuffix(otherText, text)
	case end:
		return !otherStart && strings.HasPrefix(otherText, text)
	default:
		return false
	}
}

// excludesPath reports whether surely no path matches both patterns.
func excludesPath(pattern, other string) bool {
	text, start, end, ok := pathPattern(pattern)
	otherText, otherStart, otherEnd, otherOK := pathPattern(other)
	switch {
	case !ok || !otherOK || pattern == other:
		return false
	case !start && !end && !otherStart && !otherEnd:
		return true
	case !start && !end:
		return !coversPath(other, pattern)
	case !otherStart && !otherEnd:
		return !coversPath(pattern, other)
	case !start && !otherStart:
		return !strings.HasPrefix(text, otherText) && !strings.HasPrefix(otherText, text)
	case !end && !otherEnd:
		return !strings.HasSuffix(text, otherText) && !strings.HasSuffix(otherText, text)
	default:
		return false
	}
}
