package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"
	"testing"
)

// named makes a name of what the tests know to be one.
func named(collection Collection, id string) Name {
	name, err := NewName(collection, id)
	if err != nil {
		panic(err)
	}
	return name
}

// A4: an id from outside that is a path, or that a storage or file system could read as
// something else, names nothing.
func TestNames(t *testing.T) {
	t.Parallel()
	for _, collection := range []Collection{"", "stamps", "Keys", "../keys", "keys/", "locks"} {
		if name, err := NewName(collection, "a"); !errors.Is(err, ErrName) || name != (Name{}) {
			t.Errorf("NewName(%q, a) = %v, %v, want no name and ErrName", collection, name, err)
		}
	}
	for _, id := range []string{
		"", ".", "..", "../keys/a", "a/../../b", "a/b", "/", "/a", "a/", `a\b`, "a%2fb", "%2e%2e", "%252e%252e", "a\x00", "a\n", "..\n", "a b", " a ", "a\x7f", "a\xff",
		"а", "\u00e9", "e\u0301", "\u212a", "\uff0e\uff0e", // Cyrillic, composed, decomposed, the Kelvin sign, full width
		"*", "a:b", "{a}", "a b --c", // a glob, a port, a hash tag of Redis, an option
		strings.Repeat("a", 65), strings.Repeat("a", 300), strings.Repeat("\u00e9", 64),
	} {
		name, err := NewName(Videos, id)
		if !errors.Is(err, ErrName) || name != (Name{}) || len(err.Error()) > 400 {
			t.Errorf("NewName(videos, %q) = %v, %v, want no name and a short ErrName", id, name, err)
		}
	}
	for _, id := range []string{"a", "...", ".a", "a.", "a..b", "..a", "CON", "last_clean.json", "A-z_0.~", strings.Repeat("Z", 64)} {
		for _, collection := range collections {
			name, err := NewName(collection, id)
			if err != nil || name.Collection() != collection || name.ID() != id || name.String() != string(collection)+"/"+id {
				t.Errorf("NewName(%q, %q) = %q, %v", collection, id, name, err)
			}
		}
	}
	// The alphabet of ids is the alphabet that the API documents. An id that one of two
	// checks accepts and the other refuses is an attack.
	const want = "-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~"
	var good []byte
	for c := range 256 {
		if _, err := NewName(Keys, "a"+string([]byte{byte(c)})); err == nil {
			good = append(good, byte(c))
		}
	}
	if string(good) != want {
		t.Errorf("ids may have %q, want %q", good, want)
	}
}

// S4: an object that is cut off, changed, or under another name is damaged. It must never
// count as missing, which would mean "not revoked" and "no settings".
func TestForeignBytesAreDamage(t *testing.T) {
	t.Parallel()
	name := named(Videos, "v")
	good, err := encode(name, []byte(`{"uid":"v","requireSignedURLs":true}`))
	if err != nil {
		t.Fatal(err)
	}
	envelopeOf := func(change func(*envelope)) []byte {
		data := json.RawMessage(`{"uid":"v"}`)
		s := envelope{Format: digested, Name: name.String(), SHA256: digest(data), Data: data}
		change(&s)
		raw, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	if object := decode(name, envelopeOf(func(*envelope) {})); object.Damage != nil {
		t.Fatalf("what the rows differ from is damaged: %v", object.Damage)
	}
	cases := map[string][]byte{
		"empty":                         {},
		"NULs, as after a crash":        make([]byte, len(good)),
		"null":                          []byte("null"),
		"another document":              []byte(`{"requireSignedURLs":false}`),
		"empty object":                  []byte("{}"),
		"twice":                         slicesOf(good, good),
		"a rest of what was longer":     slicesOf(good, good[len(good)-3:]),
		"content without its envelope":  []byte(`{"uid":"v","requireSignedURLs":true}`),
		"of another object":             envelopeOf(func(s *envelope) { s.Name = "videos/w" }),
		"of another collection":         envelopeOf(func(s *envelope) { s.Name = "keys/v" }),
		"without a name":                envelopeOf(func(s *envelope) { s.Name = "" }),
		"of a later version":            envelopeOf(func(s *envelope) { s.Format = 3 }),
		"authenticated, but not here":   envelopeOf(func(s *envelope) { s.Format = authenticated }),
		"of no version":                 envelopeOf(func(s *envelope) { s.Format = 0 }),
		"digest of something else":      envelopeOf(func(s *envelope) { s.SHA256 = digest([]byte("{}")) }),
		"digest in capitals":            envelopeOf(func(s *envelope) { s.SHA256 = strings.ToUpper(s.SHA256) }),
		"no digest":                     envelopeOf(func(s *envelope) { s.SHA256 = "" }),
		"content of something else":     envelopeOf(func(s *envelope) { s.Data = json.RawMessage(`{"uid":"w"}`) }),
		"content null under its digest": envelopeOf(func(s *envelope) { s.Data = nil }),
		"no content, digest of nothing": fmt.Appendf(nil, `{"signed_playback":1,"name":"videos/v","sha256":%q}`, digest(nil)),
	}
	for length := range len(good) - 1 { // the last byte is a line feed
		cases[fmt.Sprintf("cut to %d bytes", length)] = good[:length]
	}
	for what, raw := range cases {
		object := decode(name, raw)
		if !errors.Is(object.Damage, ErrDamaged) || object.Data != nil || object.Name != name {
			t.Errorf("%s: decode(%.100q) = data %q, damage %v; want damage and no data", what, raw, object.Data, object.Damage)
		}
		if object.Damage != nil && !strings.Contains(object.Damage.Error(), name.String()) {
			t.Errorf("%s: the damage does not name the object: %v", what, object.Damage)
		}
	}
}

func slicesOf(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// FuzzEnvelope checks that encode accepts JSON only, that decode returns the data of encode,
// and that one changed byte is damage or does not change the data.
func FuzzEnvelope(f *testing.F) {
	name := named(Keys, "k")
	for i, data := range []string{
		`{"id":"k","revoked":"2026-01-02T03:04:05Z"}`, `null`, ` { "a" : [ 1 , 2 ] } `, `"<\u2028&>"`, `{`, ``, `{"a":"` + "\xff" + `"}`, `-0`,
		`[]`, `""`, `{"a":1,"a":2}`, "{\"line\":\"\u2028\u2029\"}", `{"escaped":"\u003c\ud83d\ude00\/"}`, `{"number":1.0e+10}`, `12345678901234567890`,
		`{"data":{"sha256":"x"}}`, "{}{}", "nul", `{"a":1}x`, "'a'", "\x00",
	} {
		for _, value := range []byte("\x00 \"\\:,{}0aAnZ\xff") {
			f.Add([]byte(data), i*17, value)
			f.Add([]byte(data), -1-i, value)
		}
	}
	sample, err := encode(name, []byte(`{"a":1}`))
	if err != nil {
		f.Fatal(err)
	}
	for position := range sample {
		f.Add([]byte(`{"a":1}`), position, sample[position]^0x20) // the other case
		f.Add([]byte(`{"a":1}`), position, sample[position]^1)
	}
	f.Fuzz(func(t *testing.T, data []byte, position int, value byte) {
		raw, err := encode(name, data)
		if err != nil {
			if json.Valid(data) {
				t.Fatalf("encode(%q) = %v", data, err)
			}
			return
		}
		var want bytes.Buffer
		if err := json.Compact(&want, data); err != nil {
			t.Fatalf("encode accepts %q: %v", data, err)
		}
		if got := decode(name, raw); got.Damage != nil || !bytes.Equal(got.Data, want.Bytes()) {
			t.Fatalf("decode(encode(%q)) = %q, %v", data, got.Data, got.Damage)
		}
		changed := bytes.Clone(raw)
		changed[uint(position)%uint(len(raw))] = value
		switch got := decode(name, changed); {
		case got.Damage != nil && got.Data == nil:
		case got.Damage != nil:
			t.Fatalf("decode(%q) = %q and damage %v", changed, got.Data, got.Damage)
		case !bytes.Equal(got.Data, want.Bytes()):
			t.Fatalf("decode(%q) = %q, want %q or damage", changed, got.Data, want.Bytes())
		}
	})
}

// FuzzEscapedNamesAreDistinct checks that no two ids share a path, not even if the file
// system ignores case, and that nameOfPath accepts a path only if it is the path of the name.
func FuzzEscapedNamesAreDistinct(f *testing.F) {
	ids := strings.Fields("a A abC aBc %41bc Abc a.b a~b con.json con CON %41 A x-%41 ~ %7e . .. a.json a x-a a~1 A~1")
	for path := range strings.FieldsSeq("keys/x-a.json videos/ca/x-a.json keys/x-%61.json keys/x-%2e%2e.json keys/../keys/x-a.json keys/x-%.json " +
		"keys/x-%4.json keys/x-%4A.json keys/x-%4a.json keys/x-.json keys/.json keys/a.json keys/x-a keys/x-a.json.tmp keys/x-a.JSON keys/X-a.json keys/x-A.json " +
		"keys/x-%2f.json keys/x-%zz.json keys/b/x-a.json keys/1827364509 keys/../videos/ca/x-a.json keys/../../x-a.json videos/x-demo.json videos/zz/x-demo.json " +
		"videos/00/x-demo.json videos/01/x-demo.json") {
		ids = append(ids, root+"/"+path)
	}
	for i, id := range ids[1:] {
		f.Add(ids[i], id)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		var paths []string
		for _, collection := range []Collection{Keys, Videos, Signing} {
			for _, text := range []string{a, b} {
				if name, ok := nameOfPath(collection, text); ok && objectPath(name) != text {
					t.Fatalf("nameOfPath(%q) = %s, whose path is %q", text, name, objectPath(name))
				}
				if name, err := NewName(collection, text); err == nil {
					checkPath(t, name)
					paths = append(paths, strings.ToLower(objectPath(name)))
				}
			}
		}
		for i, one := range paths {
			for j, other := range paths[:i] {
				if one == other && a != b {
					t.Fatalf("the ids %q and %q share the path %q (%d, %d)", a, b, one, i, j)
				}
			}
		}
	})
}

// checkPath checks the form of an object's path.
func checkPath(t *testing.T, name Name) {
	t.Helper()
	file := objectPath(name)
	if file != strings.ToLower(file) || path.Clean(file) != file {
		t.Fatalf("the path of %s is %q: want lower case and no other spelling", name, file)
	}
	folder := path.Join(root, string(name.Collection()))
	depth := 1
	if name.Collection() == Videos {
		depth = 2
	}
	rest, inside := strings.CutPrefix(file, folder+"/")
	if !inside || strings.Count(rest, "/") != depth-1 || strings.Trim(rest, "abcdefghijklmnopqrstuvwxyz0123456789_-%./") != "" {
		t.Fatalf("the path of %s is %q", name, file)
	}
	base := path.Base(file)
	if len(base) > 255 || !strings.HasPrefix(base, "x-") || strings.Count(base, ".") != 1 {
		t.Fatalf("the file of %s is called %q", name, base)
	}
	if back, ok := nameOfPath(name.Collection(), file); !ok || back != name {
		t.Fatalf("nameOfPath(%q) = %s, %t, want %s", file, back, ok, name)
	}
	for _, other := range []Collection{Keys, Videos, Signing} {
		if _, ok := nameOfPath(other, file); ok != (other == name.Collection()) {
			t.Fatalf("nameOfPath(%s, %q) = %t", other, file, ok)
		}
	}
}

var encode, decode = (*Secrets)(nil).encode, (*Secrets)(nil).decode // without a secret
