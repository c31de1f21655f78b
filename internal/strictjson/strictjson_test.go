package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	t.Parallel()
	many := func(last string) string {
		var b strings.Builder
		for i := range 40 {
			fmt.Fprintf(&b, `"m%d":%d,`, i, i)
		}
		return "{" + b.String() + `"` + last + `":0}`
	}
	for _, tc := range []struct {
		name, doc string
		want      error
	}{
		{"object", `{"a":1,"b":[true,false,null],"c":{"d":"e"}}`, nil},
		{"white space around", " \t\r\n{ \"a\" : [ 1 , 2 ] } \n", nil},
		{"empty object and array", `[{},[]]`, nil},
		{"numbers", `[0,-0,10,1.5,-1.25e+10,1E-2]`, nil},
		{"escapes", `["\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00"]`, nil},
		{"same name in two objects", `{"a":{"a":1},"b":{"a":1}}`, nil},
		{"many members", many("last"), nil},
		{"empty document", ``, ErrSyntax},
		{"two values", `{}{}`, ErrSyntax},
		{"value and garbage", `{} x`, ErrSyntax},
		{"trailing comma in object", `{"a":1,}`, ErrSyntax},
		{"trailing comma in array", `[1,]`, ErrSyntax},
		{"missing colon", `{"a" 1}`, ErrSyntax},
		{"unquoted name", `{a:1}`, ErrSyntax},
		{"single quotes", `{'a':1}`, ErrSyntax},
		{"comment", `{"a":1/**/}`, ErrSyntax},
		{"leading zero", `[01]`, ErrSyntax},
		{"plus sign", `[+1]`, ErrSyntax},
		{"bare point", `[1.]`, ErrSyntax},
		{"bare exponent", `[1e]`, ErrSyntax},
		{"NaN", `[NaN]`, ErrSyntax},
		{"hexadecimal", `[0x10]`, ErrSyntax},
		{"literal in capitals", `[True]`, ErrSyntax},
		{"literal with a tail", `[truex]`, ErrSyntax},
		{"open object", `{"a":1`, ErrSyntax},
		{"open string", `["a`, ErrSyntax},
		{"open escape", `["a\`, ErrSyntax},
		{"open code unit", `["\u12`, ErrSyntax},
		{"an exponent alone", `[e5]`, ErrSyntax},
		{"a minus and an exponent", `[-e5]`, ErrSyntax},
		{"open surrogate", `["\ud83d\`, ErrEncoding},
		{"surrogate before something else", `["\ud83d\n"]`, ErrEncoding},
		{"a code unit with a sign", `["\u+123"]`, ErrSyntax},
		{"a minus alone", `[-]`, ErrSyntax},
		{"a bare sign of an exponent", `[1e+]`, ErrSyntax},
		{"a point first", `[.5]`, ErrSyntax},
		{"two points", `[1.2.3]`, ErrSyntax},
		{"a comma first", `[,1]`, ErrSyntax},
		{"two commas", `{"a":1,,"b":2}`, ErrSyntax},
		{"no comma", `[1 2]`, ErrSyntax},
		{"the other bracket", `[1}`, ErrSyntax},
		{"the other brace", `{"a":1]`, ErrSyntax},
		{"a value without a name", `{1}`, ErrSyntax},
		{"a name without a value", `{"a":}`, ErrSyntax},
		{"a NUL in the place of a value", "[\x00]", ErrSyntax},
		{"other white space", "[\f1]", ErrSyntax},
		{"unknown escape", `["\x41"]`, ErrSyntax},
		{"short code unit", `["\u12"]`, ErrSyntax},
		{"line break in string", "[\"a\nb\"]", ErrSyntax},
		{"byte order mark", "\ufeff{}", ErrSyntax},
		{"NUL after the value", "{}\x00", ErrSyntax},
		{"invalid UTF-8", "[\"\xff\"]", ErrEncoding},
		{"overlong UTF-8", "[\"\xc0\xae\"]", ErrEncoding},
		{"lone high surrogate", `["\ud83d"]`, ErrEncoding},
		{"lone low surrogate", `["\ude00"]`, ErrEncoding},
		{"two high surrogates", `["\ud83d\ud83d"]`, ErrEncoding},
		{"duplicate member", `{"a":1,"a":2}`, ErrDuplicate},
		{"duplicate member written with an escape", `{"sub":1,"\u0073ub":2}`, ErrDuplicate},
		{"duplicate member deep inside", `{"a":[{"b":1,"b":1}]}`, ErrDuplicate},
		{"duplicate of the first of many members", many("m3"), ErrDuplicate},
		{"duplicate of the last of many members", many("m39"), ErrDuplicate},
		{"as deep as allowed", `[[[[]]]]`, nil},
		{"deeper than allowed", `[[[[[]]]]]`, ErrDepth},
		{"very deep", strings.Repeat("[", 9000) + strings.Repeat("]", 9000), ErrDepth},
		{"too deep for a recursive reader", strings.Repeat("[", 1e5) + strings.Repeat("]", 1e5), ErrDepth},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if _, err := Parse([]byte(tc.doc), 4); !errors.Is(err, tc.want) {
				t.Errorf("Parse(%.60q) = %v, want %v", tc.doc, err, tc.want)
			}
		})
	}
}

func TestMembersAndElements(t *testing.T) {
	t.Parallel()
	v := parse(t, ` { "a" : [ 1 , "x\u0041" , {} ] , "\u0062":true, "c":"plain"} `)
	var got []string
	for name, member := range v.Members() {
		got = append(got, string(name)+"="+string(member.Raw()))
		for e := range member.Elements() {
			got = append(got, string(e.Raw()))
		}
	}
	want := []string{`a=[ 1 , "x\u0041" , {} ]`, `1`, `"x\u0041"`, `{}`, `b=true`, `c="plain"`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
}

func TestText(t *testing.T) {
	t.Parallel()
	for doc, want := range map[string]struct {
		text   string
		plain  bool
		string bool
	}{
		`"demo"`:                  {"demo", true, true},
		`""`:                      {"", true, true},
		`"a\u0062\ud83d\ude00\n"`: {"ab😀\n", false, true},
		`1`:                       {"", false, false},
		`["demo"]`:                {"", false, false},
	} {
		v := parse(t, doc)
		if text, ok := v.Text(); text != want.text || ok != want.string {
			t.Errorf("Text of %s = %q, %t, want %q, %t", doc, text, ok, want.text, want.string)
		}
		if text, ok := v.Plain(); ok != want.plain || ok && string(text) != want.text {
			t.Errorf("Plain of %s = %q, %t, want %q, %t", doc, text, ok, want.text, want.plain)
		}
	}
}

func parse(t *testing.T, doc string) Value {
	t.Helper()
	v, err := Parse([]byte(doc), 8)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// FuzzParse checks that Parse has the syntax of encoding/json, and that both read
// the same values. So no signer's library sees other claims than the
// gate.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		`{"sub":"demo","exp":1,"accessRules":[{"type":"any","action":"block"}]}`,
		`{"a":"\ud83d\ude00\u00e9\\"}`, `[1,-0.5e+3,{}]`, `{"a":1,"a":2}`, `"\ud800"`, "\xff", `[[[]]]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		v, err := Parse(doc, 16)
		if valid := json.Valid(doc); err == nil && !valid || err == ErrSyntax && valid { //nolint:errorlint // Parse wraps nothing
			t.Fatalf("Parse(%q) = %v, encoding/json says that it is valid: %t", doc, err, valid)
		}
		if err != nil {
			if v.Present() {
				t.Fatalf("Parse(%q) returned a value with %v", doc, err)
			}
			return
		}
		var std any
		if err := json.Unmarshal(doc, &std); err != nil && !strings.Contains(err.Error(), "cannot unmarshal number") {
			t.Fatalf("Parse accepted %q, encoding/json says %v", doc, err)
		}
		if !bytes.Contains(doc, v.Raw()) {
			t.Fatalf("Raw() = %q is not part of %q", v.Raw(), doc)
		}
		compare(t, v, std)
	})
}

func compare(t *testing.T, v Value, std any) {
	t.Helper()
	switch std := std.(type) {
	case map[string]any:
		n := 0
		for name, member := range v.Members() {
			n++
			want, ok := std[string(name)]
			if !ok {
				t.Fatalf("member %q is not in encoding/json's reading", name)
			}
			compare(t, member, want)
		}
		if n != len(std) {
			t.Fatalf("%d members, encoding/json has %d", n, len(std))
		}
	case []any:
		i := 0
		for e := range v.Elements() {
			compare(t, e, std[i])
			i++
		}
		if i != len(std) {
			t.Fatalf("%d elements, encoding/json has %d", i, len(std))
		}
	case string:
		if text, ok := v.Text(); !ok || text != std {
			t.Fatalf("Text() = %q, encoding/json reads %q", text, std)
		}
	case bool:
		if b, ok := v.Bool(); !ok || b != std {
			t.Fatalf("Bool() = %v, encoding/json reads %v", b, std)
		}
	case float64:
		if !v.IsNumber() {
			t.Fatalf("%q is not a number", v.Raw())
		}
	}
}
