package manifest

import (
	"bytes"
	"errors"
	"net/url"
	"strings"
)

// reference begins a reference to a variable: {$name}.
var reference = []byte("{$")

const (
	maxVariables = 256
	maxExpanded  = 4 << 10 // bytes of a URI with its variables replaced

	// expansion is how many times the size of a playlist its variables may take
	// in all. A few bytes can refer to many, so that without it a playlist
	// could keep a gateway busy for long.
	expansion = 8
)

// variables are what EXT-X-DEFINE has defined so far.
type variables struct {
	query  string
	params map[string]variable // the query, parsed when it is asked for
	values map[string]variable
	budget int
	out    []byte // scratch memory
}

// variable is the value of a variable in the player, as far as it is known here.
type variable struct {
	value string
	known bool
}

var (
	errDefine      = errors.New("EXT-X-DEFINE needs one of NAME with VALUE, IMPORT and QUERYPARAM")
	errDefineTwice = errors.New("a variable is defined twice")
	errDefineMany  = errors.New("too many variables")
	errUnknown     = errors.New("a variable that is not known here decides where a URI leads")
	errExpansion   = errors.New("variables make a URI too long")
)

// define reads EXT-X-DEFINE by RFC 8216bis section 4.4.2.3.
func (p *playlist) define(from, to int) error {
	var name, value, imported, param *string
	for list := (attributes{src: p.src[:to], next: from}); ; {
		a, more, err := list.read()
		if err != nil {
			return p.invalid(err.Error())
		}
		if !more {
			break
		}
		var field **string
		switch string(a.name) {
		case "NAME":
			field = &name
		case "VALUE":
			field = &value
		case "IMPORT":
			field = &imported
		case "QUERYPARAM":
			field = &param
		default:
			continue
		}
		if *field != nil || !a.quoted {
			return p.invalid(errDefine.Error())
		}
		text := string(p.src[a.from:a.to])
		*field = &text
	}
	err := errDefine
	switch {
	case name != nil && value != nil && imported == nil && param == nil:
		// A value may refer to variables, but that would have to be followed
		// in the way of each player.
		known := len(*value) <= maxExpanded && !strings.Contains(*value, string(reference))
		err = p.variables.set(*name, variable{*value, known})
	case name == nil && value == nil && imported != nil && param == nil:
		err = p.variables.set(*imported, variable{})
	case name == nil && value == nil && imported == nil && param != nil:
		err = p.variables.set(*param, p.variables.fromQuery(*param))
	}
	if err != nil {
		return p.invalid(err.Error())
	}
	return nil
}

func (v *variables) set(name string, value variable) error {
	if _, ok := v.values[name]; ok {
		return errDefineTwice
	}
	if len(v.values) == maxVariables {
		return errDefineMany
	}
	if v.values == nil {
		v.values = make(map[string]variable)
	}
	v.values[name] = value
	return nil
}

// fromQuery returns the value that a variable takes from the viewer's query. It
// is known only if every player reads the same value, and if that cannot lead
// anywhere but one name further down: whoever writes a link chooses it, and must
// not choose by it where another viewer's player goes.
func (v *variables) fromQuery(name string) variable {
	if v.params == nil {
		v.params = make(map[string]variable)
		for pair := range strings.SplitSeq(v.query, "&") {
			key, value, _ := strings.Cut(pair, "=")
			key, errKey := url.QueryUnescape(key)
			value, errValue := url.QueryUnescape(value)
			_, repeated := v.params[key]
			if errKey == nil {
				v.params[key] = variable{value, errValue == nil && !repeated && harmless(value)}
			}
		}
	}
	return v.params[name]
}

func harmless(value string) bool {
	for i := range len(value) {
		if !variableNameByte(value[i]) {
			return false
		}
	}
	return value != "" && len(value) <= maxExpanded
}

// variableNameByte are the bytes of variable names, and of harmless values.
func variableNameByte(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z' || c == '-' || c == '_'
}

// expand replaces the variables in a reference, until the next call. A variable that is not known is
// an error, as it is to players.
func (v *variables) expand(ref []byte) ([]byte, error) {
	out := v.out[:0]
	for {
		before, after, found := bytes.Cut(ref, reference)
		out = append(out, before...)
		if !found {
			break
		}
		end := 0
		for end < len(after) && variableNameByte(after[end]) {
			end++
		}
		if end == 0 || end == len(after) || after[end] != '}' {
			out = append(out, reference...) // not a reference
			ref = after
			continue
		}
		value, ok := v.values[string(after[:end])]
		if !ok || !value.known {
			return nil, errUnknown
		}
		out = append(out, value.value...)
		ref = after[end+1:]
		if len(out) > maxExpanded {
			return nil, errExpansion
		}
	}
	v.out = out
	if v.budget -= len(out); v.budget < 0 {
		return nil, errExpansion
	}
	return out, nil
}
