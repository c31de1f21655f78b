package store

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"path"
	"strings"
)

// objectPath returns the path of an object's file.
func objectPath(name Name) string {
	folder := path.Join(root, string(name.collection))
	if name.collection == Videos {
		// One folder with very many files is slow to list on some systems.
		sum := sha256.Sum256([]byte(name.id))
		folder = path.Join(folder, hex.EncodeToString(sum[:1]))
	}
	return path.Join(folder, escape(name.id)+".json")
}

// nameOfPath is the inverse of objectPath; ok is false for a path that it does
// not return.
func nameOfPath(collection Collection, file string) (name Name, ok bool) {
	escaped := strings.TrimSuffix(strings.TrimPrefix(path.Base(file), escapePrefix), ".json")
	id, err := url.PathUnescape(escaped)
	if err != nil {
		return Name{}, false
	}
	name, err = NewName(collection, id)
	return name, err == nil && objectPath(name) == file
}

const escapePrefix = "x-"

// escape turns an id into a file name that means the same on every file system:
// some fold case, reserve names (con, nul), or hide files that start with a dot.
// Capitals and punctuation become % and two digits, after a prefix.
func escape(id string) string {
	var b strings.Builder
	b.WriteString(escapePrefix)
	for i := range len(id) {
		switch c := id[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02x", c)
		}
	}
	return b.String()
}
