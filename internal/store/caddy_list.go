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

	// readsOfAll is how many objects All reads at a time. On a storage in the
	// network, keys must be read within a second for a revocation to be in force
	// in time.
	readsOfAll = maxReads / 2

	// objectTimeout bounds how long All waits for one object, so that an object that
	// hangs does not delay the others.
	objectTimeout = 800 * time.Millisecond
)

// All implements Store.
func (s *Caddy) All(ctx context.Context, collection Collection) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		folders, err := s.folders(ctx, collection)
		if err != nil {
			yield(Object{}, err)
			return
		}
		for _, folder := range folders {
			if !s.allIn(ctx, collection, folder, yield) {
				return
			}
		}
	}
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

func (s *Caddy) allIn(ctx context.Context, collection Collection, folder string, yield func(Object, error) bool) bool {
	names, err := s.namesIn(ctx, collection, folder)
	if err != nil {
		return yield(Object{}, err)
	}
	for some := range slices.Chunk(names, readsOfAll) {
		objects, errs := s.getAll(ctx, some)
		for i, name := range some {
			if err := errs[i]; err != nil && !s.answers(ctx, collection) {
				yield(Object{}, err)
				return false
			}
			objects[i].Name = name
			if !yield(objects[i], errs[i]) {
				return false
			}
		}
	}
	return true
}

// Names implements Store.
func (s *Caddy) Names(ctx context.Context, collection Collection) (names []Name, err error) {
	folders, err := s.folders(ctx, collection)
	for _, folder := range folders {
		some, err := s.namesIn(ctx, collection, folder)
		if err != nil {
			return nil, err
		}
		names = append(names, some...)
	}
	return names, err
}

func (s *Caddy) namesIn(ctx context.Context, collection Collection, folder string) (names []Name, err error) {
	files, err := s.list(ctx, folder)
	for _, file := range files {
		if name, ok := nameOfPath(collection, file); ok {
			names = append(names, name)
		}
	}
	return names, err
}

// getAll reads some objects at the same time.
func (s *Caddy) getAll(ctx context.Context, names []Name) ([]Object, []error) {
	ctx, cancel := context.WithTimeout(ctx, objectTimeout)
	defer cancel()
	objects, errs := make([]Object, len(names)), make([]error, len(names))
	var group sync.WaitGroup
	for i, name := range names {
		group.Go(func() { objects[i], errs[i] = s.Get(ctx, name) })
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
	_, err := await(ctx, s.reads, func() (string, error) { return s.stamp(ctx, collection) })
	return err == nil
}

// list returns the entries of a folder, which need not exist.
func (s *Caddy) list(ctx context.Context, folder string) ([]string, error) {
	return await(ctx, s.reads, func() ([]string, error) {
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
