package store

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// FuzzChanges holds of the changes that other nodes tell of, in a journal and in
// Redis, that what is read is what was written, that no part of it is passed over
// in silence, and that a node which asks twice learns what one learns that asks
// once: a change that is missed leaves a revoked key in force.
func FuzzChanges(f *testing.F) {
	for _, entries := range []string{
		"3 keys/c n3\n2 videos/demo n2\n1 keys/a n1", "2 keys/a n2\n1 keys/a n1", "2 keys/a\n1 signing/gateway", "2 keys/..\n1 keys/a", "1 changes/a",
		"3 keys/c\n1 keys/a", "2 keys/a/b\n1 keys/", "+2 keys/a\n01 keys/b", "1 keys/a keys/b", "", "\n\n", "9223372036854775807 keys/a",
	} {
		f.Add(entries, int64(strings.Count(entries, "\n")+1), uint8(1))
	}
	f.Fuzz(func(t *testing.T, text string, version int64, split uint8) {
		entries := strings.Split(text, "\n")
		for _, entry := range entries {
			checkEntry(t, entry, version)
		}
		checkSince(t, entries, version, int64(split))
		checkJournal(t, entries, uint64(version), uint64(split))
	})
}

// checkEntry holds that an entry of Redis tells of the one change that it spells.
func checkEntry(t *testing.T, entry string, version int64) {
	t.Helper()
	name, ok := parseEntry(entry, version)
	if !ok {
		return
	}
	written := fmt.Sprintf("%d %s", version, name)
	if entry != written && !strings.HasPrefix(entry, written+" ") {
		t.Fatalf("parseEntry(%q) = %s, which is written %q", entry, name, written)
	}
	if _, ok := parseEntry(written, version+1); ok {
		t.Fatalf("%q is taken for the change %d", written, version+1)
	}
}

// checkSince holds that whoever asks for the changes since a mark, and since one
// between, learns of the same.
func checkSince(t *testing.T, entries []string, version, split int64) {
	t.Helper()
	last := int64(len(entries)) - 1
	if version < last { // or versions would be negative
		return
	}
	oldest := mark{version - last, entries[last]}
	all, complete := since(oldest, version, entries)
	for _, name := range all {
		if !slices.ContainsFunc(entries[:last], func(entry string) bool { return strings.Contains(entry, name.String()) }) {
			t.Fatalf("since tells of %s, which is not in %q", name, entries)
		}
	}
	if _, complete := since(mark{oldest.version, oldest.entry + "!"}, version, entries); complete {
		t.Fatalf("since(%q) leads back to an entry that is not there", entries)
	}
	if complete && int64(len(all)) > last {
		t.Fatalf("%d entries tell of %d changes", last, len(all))
	}
	between := min(split, last)
	newer, first := since(mark{version - between, entries[between]}, version, entries)
	older, second := since(oldest, version-between, entries[between:])
	if complete != (first && second) {
		t.Fatalf("since(%q) is complete: %t, and in two parts: %t, %t", entries, complete, first, second)
	}
	for _, name := range slices.Concat(newer, older) {
		if complete && !slices.Contains(all, name) {
			t.Fatalf("since(%q) does not tell of %s", entries, name)
		}
	}
	for _, name := range all {
		if !slices.Contains(newer, name) && !slices.Contains(older, name) {
			t.Fatalf("since(%q) in two parts does not tell of %s", entries, name)
		}
	}
}

// checkJournal holds that a journal survives being written, and that what is read
// of it is its end, change by change.
func checkJournal(t *testing.T, last []string, count, after uint64) {
	t.Helper()
	for i := range last {
		last[i] = strings.ToValidUTF8(last[i], "?") // as it stands in JSON
	}
	const node = "0123456789abcdef"
	raw, err := journalDocument{count, last}.encode(node)
	if err != nil {
		t.Fatal(err)
	}
	var made journalDocument
	object := unseal(Name{journals, node}, raw)
	if err := json.Unmarshal(object.Data, &made); err != nil || object.Damage != nil || made.Count != count || !slices.Equal(made.Last, last) {
		t.Fatalf("the journal %d %q is read as %+v: %v, %v", count, last, made, object.Damage, err)
	}
	if other := unseal(Name{journals, "fedcba9876543210"}, raw); other.Damage == nil {
		t.Fatal("the journal of one node is taken for that of another")
	}
	r := reading{complete: true}
	r.add(made, after)
	told := make([]string, 0, len(r.changed))
	for _, name := range r.changed {
		told = append(told, name.String())
	}
	if !r.complete {
		return
	}
	if count < after || uint64(len(told)) != count-after || !slices.Equal(told, last[len(last)-len(told):]) {
		t.Fatalf("the changes of %d %q after %d are %q", count, last, after, told)
	}
}
