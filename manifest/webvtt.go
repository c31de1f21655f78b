package manifest

import "bytes"

// isWebVTT reports whether body begins like a WebVTT file (W3C WebVTT section 4.1). body
// has no byte order mark.
func isWebVTT(body []byte) bool {
	rest, ok := bytes.CutPrefix(body, []byte("WEBVTT"))
	return ok && (len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0)
}

// rewriteWebVTT rewrites the cues that consist of one URI, as those of a storyboard do. A
// line of captions that is such a URI by accident does not exist.
func rewriteWebVTT(dst, src []byte, at Location) ([]byte, Stats, error) {
	m, e, stats := newMapper(at), newEditor(dst, src, at), Stats{}
	base := m.document()
	inCue := false
	for from := 0; from < len(src); {
		end := len(src)
		if i := bytes.IndexAny(src[from:], "\r\n"); i >= 0 {
			end = from + i
		}
		line := src[from:end]
		switch {
		case bytes.Contains(line, []byte("-->")):
			inCue = true
		case len(line) == 0:
			inCue = inCue && bytes.HasPrefix(src[max(0, end-1):], []byte("\r\n")) // the middle of a line break
		case inCue && (!hasBlank(line) || bytes.Contains(line, []byte("#xywh="))) && m.leadsInside(base, line):
			_, suffix := cutSuffix(trim(line))
			stats.Rewritten++
			if err := e.replace(from, end, m.out, suffix); err != nil {
				return nil, Stats{}, err
			}
		}
		from = end + 1
	}
	return e.finish(), stats, nil
}
