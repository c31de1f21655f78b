package manifest

import (
	"bytes"
	"errors"
	"maps"
	"net/url"
	"slices"
	"strings"
)

// variableStart begins a variable reference: {$name}.
var variableStart = []byte("{$")

const (
	maxVariables = 256
	maxExpanded  = 4 << 10 // bytes of a URI after its variables are replaced

	// maxExpansion limits the length of all replaced URIs together, in sizes of
	// the playlist. A few bytes can refer to a long variable, so without the limit
	// a playlist could keep the gateway busy for a long time.
	maxExpansion = 8
)

// variables are those that EXT-X-DEFINE has defined so far.
type variables struct {
	query  string
	params map[string]variable // of the query, parsed on first use
	values map[string]variable

	// unreadable is set by a definition that each player reads differently. Then the
	// value of no variable is known.
	unreadable bool

	budget int    // how many bytes of replaced URIs are left
	out    []byte // reused memory
}

// variable is a variable and its value in the player, if that is known here.
type variable struct {
	value string
	known bool
}

var (
	errUnknown   = errors.New("a URI depends on a variable whose value is unknown")
	errExpansion = errors.New("a URI is too long when its variables are replaced")
)

const whyDefine = "EXT-X-DEFINE needs one of NAME with VALUE, IMPORT and QUERYPARAM"

// define reads the attributes of EXT-X-DEFINE (RFC 8216bis section 4.4.2.3).
func (p *playlist) define(from, to int) error {
	given := make(map[string]string)
	for list := (attributes{src: p.src[:to], next: from}); ; {
		a, more, err := list.read()
		if err != nil {
			p.variables.unreadable = true
			return nil
		}
		if !more {
			break
		}
		switch name := string(a.name); name {
		case "NAME", "VALUE", "IMPORT", "QUERYPARAM":
			if _, repeated := given[name]; repeated || !a.quoted {
				return p.invalid(whyDefine)
			}
			given[name] = string(p.src[a.from:a.to])
		}
	}
	var name string
	var value variable // unknown, if it is imported
	switch strings.Join(slices.Sorted(maps.Keys(given)), " ") {
	case "NAME VALUE":
		name, value.value = given["NAME"], given["VALUE"]
		// A value may contain variable references, but players replace them
		// differently.
		value.known = len(value.value) <= maxExpanded && !strings.Contains(value.value, string(variableStart))
	case "IMPORT":
		name = given["IMPORT"]
	case "QUERYPARAM":
		name = given["QUERYPARAM"]
		value = p.variables.fromQuery(name)
	default:
		return p.invalid(whyDefine)
	}
	if _, defined := p.variables.values[name]; defined {
		return p.invalid("a variable is defined twice")
	}
	if len(p.variables.values) == maxVariables {
		return p.invalid("too many variables")
	}
	p.variables.values[name] = value
	return nil
}

// fromQuery returns the value that a variable takes from the viewer's query. It is
// known only if all players read the same value and if the value is harmless: the
// author of a link chooses it, and must not choose where another viewer's player
// goes.
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

// harmless reports whether a value in a URI can only be part of the name of a file
// or folder.
func harmless(value string) bool {
	return value != "" && len(value) <= maxExpanded && variableNameByte.prefixLength([]byte(value)) == len(value)
}

// variableNameByte are the bytes of variable names and of harmless values.
var variableNameByte = newByteSet(alphanumeric + "-_")

// expand replaces the variables in a reference. The result is valid until the next
// call. An unknown variable is an error, as in players.
func (v *variables) expand(ref []byte) ([]byte, error) {
	out := v.out[:0]
	for {
		before, after, found := bytes.Cut(ref, variableStart)
		out = append(out, before...)
		if !found {
			break
		}
		end := variableNameByte.prefixLength(after)
		if end == 0 || end == len(after) || after[end] != '}' {
			out = append(out, variableStart...) // not a variable reference
			ref = after
			continue
		}
		value, ok := v.values[string(after[:end])]
		if !ok || !value.known || v.unreadable {
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
