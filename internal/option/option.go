// Package option reads the options of a block of the Caddyfile: a reader for each kind of value. A
// value that is missing, repeated, empty or not valid is an error that names it.
package option

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/signed-playback/caddy-signed-playback/internal/spelling"
)

// Dispenser is Caddy's reader of tokens, caddyfile.Dispenser.
type Dispenser interface {
	Val() string
	Nesting() int
	NextBlock(nesting int) bool
	NextArg() bool
	CountRemainingArgs() int
	RemainingArgs() []string
	Errf(format string, args ...any) error
	WrapErr(err error) error
}

// Reader reads the arguments of an option, whose name has been consumed.
type Reader func(d Dispenser) error

// Options are the readers of a block by the names of the options.
type Options map[string]Reader

// With returns the options and others.
func (o Options) With(others Options) Options {
	maps.Copy(o, others)
	return o
}

// Place is a block of the Caddyfile that has options.
type Place struct {
	Name    string
	Options func() Options
}

// Blocks are all places, so that an error can say where an option belongs. IsDirective reports
// whether Caddy has a directive of a name.
type Blocks struct {
	Places      []Place
	IsDirective func(name string) bool
}

// Read reads each option of a block. Unknown and repeated ones are
// errors: an option that is silently ignored may be one that restricts access.
func (b Blocks) Read(d Dispenser, options Options) error {
	seen := make(map[string]bool)
	previous := ""
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		name := d.Val()
		read, known := options[name]
		if name == "{" {
			return d.Errf("unexpected %q: %s takes no block", name, previous)
		}
		previous = name
		if !known {
			return d.Errf("unrecognized option %q%s; known are %s", name, b.Hint(name, options), strings.Join(slices.Sorted(maps.Keys(options)), ", "))
		}
		if seen[name] && name != "video" && name != "auth_key" {
			return d.Errf("option %q is repeated; give it once", name)
		}
		seen[name] = true
		if err := read(d); err != nil {
			return err
		}
	}
	return nil
}

// Hint says where a name that a block does not know belongs, or what the user
// has probably meant by it.
func (b Blocks) Hint(name string, here Options) string {
	places := make(map[string][]string) // by option
	for _, place := range b.Places {
		for known := range place.Options() {
			places[known] = append(places[known], place.Name)
		}
	}
	meant := spelling.Closest(name, append(slices.Sorted(maps.Keys(here)), slices.Sorted(maps.Keys(places))...)) // at the same distance, one of here
	belongs := func(option string) string { return "it belongs to " + strings.Join(places[option], ", or to ") }
	switch {
	case places[name] != nil:
		return ": " + belongs(name)
	case b.IsDirective(name):
		return ": it is a directive of Caddy and belongs to a site, outside of this block"
	case here[meant] != nil:
		return fmt.Sprintf(": did you mean %q?", meant)
	case meant != "":
		return fmt.Sprintf(": did you mean %q? If so, %s", meant, belongs(meant))
	default:
		return ""
	}
}

// located adds file and line to an error.
func located(d Dispenser, err error) error {
	if err == nil {
		return nil
	}
	return d.WrapErr(err)
}

// Then reads an option, and then checks it together with others.
func (r Reader) Then(check func() error) Reader {
	return func(d Dispenser) error {
		if err := r(d); err != nil {
			return err
		}
		return located(d, check())
	}
}

// argument reads the one argument of an option, and returns the option's name too.
func argument(d Dispenser) (name, value string, err error) {
	name = d.Val()
	args := d.RemainingArgs()
	if len(args) > 1 {
		return name, "", d.Errf("%s takes one argument, not %d: %q; quote a value that contains a space", name, len(args), args)
	}
	if len(args) == 0 || args[0] == "" {
		return name, "", d.Errf("%s needs an argument; a variable {$NAME} that is not set gives none", name)
	}
	return name, args[0], nil
}

// Text reads one argument. check may be nil.
func Text(value *string, check func(string) error) Reader {
	return func(d Dispenser) (err error) {
		if _, *value, err = argument(d); err != nil || check == nil {
			return err
		}
		return located(d, check(*value))
	}
}

// List reads at least one argument. It calls check, which may be nil, for each.
func List(values *[]string, check func(string) error) Reader {
	return func(d Dispenser) error {
		name, args := d.Val(), d.RemainingArgs()
		if len(args) == 0 {
			return d.Errf("%s takes at least one argument", name)
		}
		for i, arg := range args {
			if arg == "" {
				return d.Errf("%s: argument %d is empty", name, i+1)
			}
			if slices.Contains(args[:i], arg) {
				return d.Errf("%s: %q is repeated", name, arg)
			}
			if check == nil {
				continue
			}
			if err := check(arg); err != nil {
				return d.WrapErr(err)
			}
		}
		*values = args
		return nil
	}
}

// Parsed is a check that a text parses.
func Parsed[T any](parse func(string) (T, error)) func(string) error {
	return func(text string) error {
		_, err := parse(text)
		return err
	}
}

// Literal is a check of a text without placeholders. One with placeholders is checked where they
// are resolved.
func Literal(check func(string) error) func(string) error {
	return func(text string) error {
		if HasPlaceholder(text) {
			return nil
		}
		return check(text)
	}
}

// HasPlaceholder reports whether a text may contain placeholders.
func HasPlaceholder(text string) bool { return strings.Contains(text, "{") }

// Secret reads one argument, which no error contains.
func Secret(value *string) Reader {
	return func(d Dispenser) error {
		name, args := d.Val(), d.RemainingArgs()
		if len(args) != 1 || args[0] == "" {
			return d.Errf("%s takes one secret, not \"%d\"", name, len(args))
		}
		*value = args[0]
		return nil
	}
}

// Flag is an option without arguments, which is on where it is written.
func Flag(value *bool) Reader {
	return func(d Dispenser) error {
		*value = true
		name := d.Val()
		if d.NextArg() {
			return d.Errf("%s takes no argument, not %q", name, d.Val())
		}
		return nil
	}
}

// Switch reads on or off.
func Switch(value **bool) Reader {
	return func(d Dispenser) error {
		name, word, err := argument(d)
		if err != nil {
			return err
		}
		if word != "on" && word != "off" {
			return d.Errf("%s %q: want on or off", name, word)
		}
		*value = new(word == "on")
		return nil
	}
}

// Words is an option with one of two words as its value. The first one is the default.
type Words struct{ Option, First, Second string }

// IsSecond reports whether a value is the second word. An empty value means the first.
func (w Words) IsSecond(value string) (bool, error) {
	switch value {
	case "", w.First:
		return false, nil
	case w.Second:
		return true, nil
	}
	return false, fmt.Errorf("%s %q: want %s or %s", w.Option, value, w.First, w.Second)
}

// Read returns a reader of the option.
func (w Words) Read(value *string) Reader { return Text(value, Parsed(w.IsSecond)) }

// Count reads a number of at least 1.
func Count(value *int) Reader { return Amount(value, strconv.Atoi, 1, "a number of at least 1") }

// Amount reads an argument that is at least least. want describes it.
func Amount[T, U ~int | ~int64](value *T, parse func(string) (U, error), least U, want string) Reader {
	return func(d Dispenser) error {
		name, text, err := argument(d)
		if err != nil {
			return err
		}
		amount, err := parse(text)
		if err != nil || amount < least {
			return d.Errf("%s %q: want %s", name, text, want)
		}
		*value = T(amount)
		return nil
	}
}

// Size reads a number of bytes, like 128MiB, of at least minimum.
func Size(value *uint64, minimum uint64) Reader {
	return func(d Dispenser) error {
		name, text, err := argument(d)
		if err != nil {
			return err
		}
		size, err := humanize.ParseBytes(text)
		if err != nil || size < minimum {
			return d.Errf("%s %q: want a size like 128MiB, at least %s", name, text, humanize.IBytes(minimum))
		}
		*value = size
		return nil
	}
}
