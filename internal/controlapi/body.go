package controlapi

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
)

// members are the known members of a body, with the functions that read them. A member
// with a nil function is ignored.
type members map[string]func(strictjson.Value) error

// read reads a body. An unknown member is an error: it may be a misspelled restriction.
func (m members) read(body strictjson.Value) error {
	for name, value := range body.Members() {
		read, known := m[string(name)]
		if !known {
			return m.unknown(string(name))
		}
		if read == nil {
			continue
		}
		if err := read(value); err != nil {
			return err
		}
	}
	return nil
}

func (m members) unknown(name string) error {
	settable := slices.DeleteFunc(slices.Sorted(maps.Keys(m)), func(known string) bool { return m[known] == nil })
	if i := slices.IndexFunc(settable, func(known string) bool { return strings.EqualFold(known, name) }); i >= 0 {
		return badRequest("unknown member %.80q: did you mean %q?", name, settable[i])
	}
	return badRequest("unknown member %.80q; known: %s", name, cmp.Or(strings.Join(settable, ", "), "none"))
}

// member returns a function that reads one member into a variable. want describes
// the values that parse accepts.
func member[T any](name string, into *T, parse func(strictjson.Value) (T, bool), want string) func(strictjson.Value) error {
	return func(v strictjson.Value) (err error) {
		var ok bool
		if *into, ok = parse(v); !ok {
			return badRequest("%s is %.40s: want %s", name, v.Raw(), want)
		}
		return nil
	}
}

func isNull(v strictjson.Value) bool { return string(v.Raw()) == "null" }

func boolMember(name string, into *bool) func(strictjson.Value) error {
	return member(name, into, strictjson.Value.Bool, "true or false")
}

// dateMember reads Unix seconds. 0 means no date.
func dateMember(name string, into *time.Time) func(strictjson.Value) error {
	return member(name, into, func(v strictjson.Value) (date time.Time, ok bool) {
		seconds, err := strconv.ParseInt(string(v.Raw()), 10, 64)
		if err == nil && seconds != 0 {
			date = time.Unix(seconds, 0)
		}
		return date, err == nil && seconds >= 0
	}, "Unix seconds, a whole number")
}
