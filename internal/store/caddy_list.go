package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// maxListings is how often a folder that changes meanwhile is listed again.
	maxListings = 100

	// readsAtOnce is how many objects GetAll reads at a time. On a storage in the
	// network, keys must be read within a second for a revocation to be in force
	// in time.
	readsAtOnce = maxReads / 2

	// objectTimeout bounds how long GetAll waits for one object, so that an object that
	// hangs does not delay the others.
	objectTimeout = 800 * time.Millisecond
)

// Names implements Store.
func (s *Caddy) Names(ctx context.Context, collection Collection) (names []Name, err error) {
	folders, err := s.folders(ctx, collection)
	for _, folder := range folders {
		files, err := s.list(ctx, folder)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			if name, ok := nameOfPath(collection, file); ok {
				names = append(names, name)
			}
		}
	}
	return names, err
}

// folders returns the folders that contain the objects of a collection.
func (s *Caddy) folders(ctx context.Context, collection Collection) ([]string, error) {
	folder := path.Join(root, string(collection))
	if collection != Videos {
		return []string{folder}, nil
	}
	entries, err := s.list(ctx, folder)
	if err != nil {
		return nil, err
	}
	// Some storages list the files in the folders, rather than the folders.
	known := make(map[string]bool)
	var folders []string
	for _, entry := range entries {
		shard, _, _ := strings.Cut(strings.TrimPrefix(entry, folder+"/"), "/")
		if shardName.MatchString(shard) && !known[shard] {
			known[shard] = true
			folders = append(folders, path.Join(folder, shard))
		}
	}
	return folders, nil
}

var shardName = regexp.MustCompile(`^[0-9a-f]{2}$`)

// GetAll implements Store.
func (s *Caddy) GetAll(ctx context.Context, names []Name) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		for some := range slices.Chunk(names, readsAtOnce) {
			objects, errs := s.getSome(ctx, some)
			for i, name := range some {
				if err := errs[i]; err != nil && !s.answers(ctx, name.collection) {
					yield(Object{}, err)
					return
				}
				objects[i].Name = name
				if !yield(objects[i], errs[i]) {
					return
				}
			}
		}
	}
}

// getSome reads some objects at the same time.
func (s *Caddy) getSome(ctx context.Context, names []Name) ([]Object, []error) {
	ctx, cancel := context.WithTimeout(ctx, objectTimeout)
	defer cancel()
	objects, errs := make([]Object, len(names)), make([]error, len(names))
	var group sync.WaitGroup
	for i, name := range names {
		group.Go(func() { objects[i], errs[i] = s.Get(ctx, name, Server) })
	}
	group.Wait()
	return objects, errs
}

// answers reports whether the storage answers, after it has failed to read an object.
func (s *Caddy) answers(ctx context.Context, collection Collection) bool {
	if ctx.Err() != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, objectTimeout)
	defer cancel()
	_, err := await(ctx, s.calls, Server, func() (string, error) { return s.stamp(ctx, collection) })
	return err == nil
}

// list returns the entries of a folder, which need not exist.
func (s *Caddy) list(ctx context.Context, folder string) ([]string, error) {
	return await(ctx, s.calls, Server, func() ([]string, error) {
		for attempt := 1; ; attempt++ {
			entries, err := s.storage().List(ctx, folder, false)
			switch {
			case err == nil && len(entries) > 0:
				s.seen.Store(true)
				return entries, nil
			case err == nil:
				return nil, s.stillThere(ctx)
			case !errors.Is(err, fs.ErrNotExist), attempt == maxListings, ctx.Err() != nil:
				return nil, fmt.Errorf("%w: listing %s: %w", ErrUnavailable, folder, err)
			}
			// File storage returns the same error, and a part of the list, if a file
			// vanishes meanwhile, such as the temporary file of a write. The missing
			// part may contain a revocation.
			_, err = s.storage().Stat(ctx, folder)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil, s.stillThere(ctx)
			case err != nil:
				return nil, fmt.Errorf("%w: looking for %s: %w", ErrUnavailable, folder, err)
			}
		}
	})
}
