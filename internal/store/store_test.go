package store

import (
	"errors"
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
