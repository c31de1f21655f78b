package mediacache

import (
	"fmt"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// maxRanges is how many ranges of one request are answered as ranges. No player asks
// for more, and each costs a header.
const maxRanges = 16

func rangeOf(s span) string { return fmt.Sprintf("bytes=%d-%d", s.first, s.last) }

// ranges returns the ranges of an object that a request asks for (RFC 9110 section 14.2).
// ok is false if it is to get the whole object: because it asks for none, because its
// If-Range does not match, because the field is malformed, or because the length is not
// known yet. No range at all means that none can be satisfied.
func (v *visit) ranges(o *object) (spans []span, ok bool) {
	fields := v.r.Header["Range"]
	if len(fields) != 1 || v.r.Method != http.MethodGet {
		return nil, false
	}
	if o.length < 0 || !v.matchesIfRange(o) {
		return nil, false
	}
	return parseRange(fields[0], o.length)
}

func (v *visit) matchesIfRange(o *object) bool {
	fields := v.r.Header["If-Range"]
	if len(fields) == 0 {
		return true
	}
	if at, ok := parseDate(fields); ok {
		return !o.modified.IsZero() && o.modified.Equal(at)
	}
	return len(fields) == 1 && fields[0] == o.etag && o.etag != "" && !isWeak(o.etag)
}

func parseRange(field string, total int64) (spans []span, ok bool) {
	unit, set, _ := strings.Cut(field, "=")
	if !strings.EqualFold(strings.TrimSpace(unit), "bytes") {
		return nil, false
	}
	var sum int64
	count := 0
	for spec := range strings.SplitSeq(set, ",") {
		spec = strings.Trim(spec, " \t")
		if spec == "" {
			continue
		}
		s, valid := parseSpec(spec, total)
		if !valid {
			return nil, false
		}
		count++
		if s.first < total && s.length() > 0 {
			spans = append(spans, s)
			sum += s.length()
		}
	}
	// Overlapping ranges are answered with the whole, as RFC 9110 section 14.2 advises.
	if count == 0 || count > maxRanges || len(spans) > 1 && sum > total {
		return nil, false
	}
	return spans, true
}

// parseSpec parses first-last, first- or -suffix.
func parseSpec(spec string, total int64) (s span, ok bool) {
	first, last, found := strings.Cut(spec, "-")
	if !found {
		return span{}, false
	}
	s = span{first: 0, last: total - 1, total: total}
	if first == "" {
		n, ok := parseDigits(last)
		s.first = max(total-n, 0)
		return s, ok
	}
	if s.first, ok = parseDigits(first); !ok {
		return span{}, false
	}
	if last != "" {
		n, ok := parseDigits(last)
		if !ok || n < s.first {
			return span{}, false
		}
		s.last = min(n, total-1)
	}
	return s, true
}

// sendRanges answers with 206, or with 416 if there is no range that the object has.
func (v *visit) sendRanges(o *object, rd *reader, spans []span) error {
	h := v.w.Header()
	switch len(spans) {
	case 0:
		delete(h, "Content-Type")
		h["Content-Range"] = []string{fmt.Sprintf("bytes */%d", o.length)}
		h["Content-Length"] = []string{"0"}
		v.w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
	case 1:
		s := spans[0]
		h["Content-Range"] = []string{s.String()}
		h["Content-Length"] = []string{strconv.FormatInt(s.length(), 10)}
		v.w.WriteHeader(http.StatusPartialContent)
		v.send(o, rd, s)
	default:
		v.sendMultipart(o, rd, spans)
	}
	return nil
}

func (v *visit) sendMultipart(o *object, rd *reader, spans []span) {
	h := v.w.Header()
	contentType := h.Get("Content-Type")
	parts := multipart.NewWriter(v.w)
	h["Content-Type"] = []string{"multipart/byteranges; boundary=" + parts.Boundary()}
	delete(h, "Content-Length")
	v.w.WriteHeader(http.StatusPartialContent)
	for _, s := range spans {
		head := textproto.MIMEHeader{"Content-Range": {s.String()}}
		if contentType != "" {
			head["Content-Type"] = []string{contentType}
		}
		if _, err := parts.CreatePart(head); err != nil {
			panic(http.ErrAbortHandler)
		}
		v.send(o, rd, s)
	}
	if err := parts.Close(); err != nil {
		panic(http.ErrAbortHandler)
	}
}
