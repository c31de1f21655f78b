package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"
)

const (
	journals Collection = "changes"

	// journalLength is how many changes a journal holds. A node that misses
	// more reads everything anew.
	journalLength = 256
)

// journalDocument is the content of signed_playback/changes/<node>.json.
type journalDocument struct {
	// The number of changes that the node has made.
	Count uint64 `json:"count"`
	// The last of them, oldest first, as <collection>/<id>.
	Last []string `json:"last"`
}

func (d journalDocument) encode(node string) ([]byte, error) {
	data, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("store: encoding journal: %w", err)
	}
	return seal(Name{journals, node}, data)
}

// journal is the list of what this node has changed.
type journal struct {
	node string
	wake chan struct{}

	mu   sync.Mutex
	made journalDocument

	writing chan struct{} // held while the journal is written
	written uint64        // the count that the storage has; guarded by writing

	reported uint64 // what Changes has told; for its caller only
}

func newJournal(node string) *journal {
	return &journal{node: node, wake: make(chan struct{}, 1), writing: make(chan struct{}, 1)}
}

func (j *journal) path() string { return path.Join(root, string(journals), j.node+".json") }

// add notes a change and returns its number.
func (j *journal) add(name Name) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.made.Count++
	if len(j.made.Last) == journalLength {
		j.made.Last = slices.Delete(j.made.Last, 0, 1)
	}
	j.made.Last = append(j.made.Last, name.String())
	return j.made.Count
}

func (j *journal) snapshot() journalDocument {
	j.mu.Lock()
	defer j.mu.Unlock()
	return journalDocument{j.made.Count, slices.Clone(j.made.Last)}
}

var journalName = regexp.MustCompile(`^[0-9a-f]{16}\.json$`)

// announce makes a change known to other nodes, durably. Changes that are
// waiting while the journal is written go along with the next writing.
func (s *Caddy) announce(ctx context.Context, name Name) error {
	j := s.journal
	number := j.add(name)
	select {
	case j.writing <- struct{}{}:
		defer func() { <-j.writing }()
	case <-ctx.Done():
		return fmt.Errorf("%w: announcing %s: %w", ErrUnavailable, name, ctx.Err())
	}
	if j.written < number {
		made := j.snapshot()
		raw, err := made.encode(j.node)
		if err != nil {
			return err
		}
		if err := s.storage.Store(ctx, j.path(), raw); err != nil {
			return fmt.Errorf("%w: announcing %s: %w", ErrUnavailable, name, err)
		}
		j.written = made.Count
		s.seen.Store(true)
	}
	select {
	case j.wake <- struct{}{}:
	default:
	}
	return nil
}

// otherJournal is another node's journal as it was last seen.
type otherJournal struct {
	raw        []byte
	count      uint64
	unreadable bool // at the last attempt
}

// Changes implements Store.
func (s *Caddy) Changes(ctx context.Context) (changed []Name, complete bool, err error) {
	files, err := s.list(ctx, path.Join(root, string(journals)))
	if err != nil {
		return nil, false, err
	}
	first := s.others == nil
	seen := make(map[string]otherJournal, len(files))
	reading := reading{complete: !first}
	for _, file := range files {
		switch {
		case file == s.journal.path():
		case !journalName.MatchString(path.Base(file)):
			s.sweep(ctx, file)
		default:
			if first {
				s.removeAbandoned(ctx, file)
			}
			journal, present, err := s.readJournal(ctx, file, &reading)
			if err != nil {
				return nil, false, err
			}
			if present {
				seen[file] = journal
			}
		}
	}
	for file := range s.others {
		if _, still := seen[file]; !still {
			// Somebody has swept it, perhaps just after its node wrote to it.
			reading.complete = false
		}
	}
	s.others = seen
	made := s.journal.snapshot()
	reading.add(made, s.journal.reported)
	s.journal.reported = made.Count
	return reading.changed, reading.complete, nil
}

// readJournal adds to a reading what is new in another node's journal.
func (s *Caddy) readJournal(ctx context.Context, file string, r *reading) (journal otherJournal, present bool, err error) {
	node := strings.TrimSuffix(path.Base(file), ".json")
	raw, err := await(ctx, s.reads, func() ([]byte, error) { return s.storage.Load(ctx, file) })
	before, known := s.others[file]
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist):
		return otherJournal{}, false, nil
	case ofOneFile(err):
		// Whatever its node changes, it cannot be heard of: everything is read
		// as long as that lasts.
		if !before.unreadable {
			s.logger.Error("the journal of a node cannot be read; all keys are read again each time instead",
				zap.String("file", file), zap.Error(err))
		}
		before.unreadable = true
		r.complete = false
		return before, true, nil
	default:
		return otherJournal{}, false, fmt.Errorf("%w: reading %s: %w", ErrUnavailable, file, err)
	}
	if known && bytes.Equal(raw, before.raw) {
		return before, true, nil
	}
	var made journalDocument
	object := unseal(Name{journals, node}, raw)
	if object.Damage == nil && json.Unmarshal(object.Data, &made) == nil && known {
		r.add(made, before.count)
	} else {
		r.complete = false
	}
	return otherJournal{raw: raw, count: made.Count}, true, nil
}

// reading collects what journals tell.
type reading struct {
	changed  []Name
	complete bool
}

// add collects the changes of a journal after the first so many.
func (r *reading) add(made journalDocument, after uint64) {
	if made.Count < after || made.Count-after > uint64(len(made.Last)) {
		r.complete = false
		return
	}
	for _, text := range made.Last[uint64(len(made.Last))-(made.Count-after):] {
		collection, id, _ := strings.Cut(text, "/")
		name, err := NewName(Collection(collection), id)
		if err != nil {
			r.complete = false
			return
		}
		r.changed = append(r.changed, name)
	}
}
