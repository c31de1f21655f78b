package mediacache

import (
	"encoding/binary"
	"net/http"
	"strings"
)

// fields are the header fields of an object in one string, so that the garbage collector has
// nothing to follow in a hundred thousand objects: their number, and then names and values in
// turn, each with its length before it as a varint.
type fields string

// encodeFields is the reverse of header.
func encodeFields(h http.Header) fields {
	var count uint64
	for _, values := range h {
		count += uint64(len(values))
	}
	encoded := binary.AppendUvarint(nil, count)
	for name, values := range h {
		for _, value := range values {
			for _, text := range []string{name, value} {
				encoded = append(binary.AppendUvarint(encoded, uint64(len(text))), text...)
			}
		}
	}
	return fields(encoded)
}

// cutNumber cuts a varint off, which is complete.
func (f fields) cutNumber() (n int, rest fields) {
	for i, shift := 0, 0; ; i, shift = i+1, shift+7 {
		n |= int(f[i]&0x7f) << shift
		if f[i] < 0x80 {
			return n, f[i+1:]
		}
	}
}

func (f fields) cutText() (text string, rest fields) {
	n, f := f.cutNumber()
	return string(f[:n]), f[n:]
}

// each yields names and values. All values of a name come one after the other.
func (f fields) each(yield func(name, value string) bool) {
	for _, f = f.cutNumber(); f != ""; {
		var name, value string
		name, f = f.cutText()
		value, f = f.cutText()
		if !yield(name, value) {
			return
		}
	}
}

// get returns the first value of a field by its canonical name; "" without one.
func (f fields) get(name string) string {
	for n, value := range f.each {
		if n == name {
			return value
		}
	}
	return ""
}

// header returns a copy of the fields, so that a header in use does not keep an object's string in
// memory.
func (f fields) header() http.Header {
	h := http.Header{}
	fields(strings.Clone(string(f))).addTo(h)
	return h
}

// addTo replaces fields of a header by these. The header gets slices of its own, which handlers
// before the cache may change in place, as Caddy's `header` does.
func (f fields) addTo(h http.Header) {
	count, _ := f.cutNumber()
	all, first, last := make([]string, 0, count), 0, ""
	for name, value := range f.each {
		if name != last {
			first, last = len(all), name
		}
		all = append(all, value)
		h[name] = all[first:len(all):len(all)]
	}
}
