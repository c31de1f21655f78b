package mediacache

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
)

const scanBatch = 1024 // entries of a folder in memory

// scan finds out which files there are, by their names and sizes. What is in them is
// checked when they are used.
func (d *Disk) scan(ctx context.Context, root *os.Root) {
	var foreign foreignFiles
	d.scanFolder(root, ".", &foreign)
	for i := range 256 {
		if ctx.Err() != nil {
			return
		}
		name := fileName{byte(i)}
		d.scanFolder(root, name.folder(), &foreign)
		d.work(ctx, root)
	}
	d.mu.Lock()
	d.scanned = true
	d.sortByAge()
	d.mu.Unlock()
	if foreign.count > 0 {
		d.fail("the folder of the media cache has files of others, which stay where they are", fmt.Errorf("%d, for example %q", foreign.count, foreign.example))
	}
}

// foreignFiles are those in the folder that are not of the cache.
type foreignFiles struct {
	count   int
	example string
}

// sortByAge has the oldest files evicted first. The caller has locked the disk.
func (d *Disk) sortByAge() {
	files := make([]*diskFile, 0, d.kept.small.Len())
	for e := d.kept.small.Front(); e != nil; e = e.Next() {
		files = append(files, e.Value.(*diskFile))
	}
	slices.SortStableFunc(files, func(a, b *diskFile) int { return cmp.Compare(a.written, b.written) })
	for _, f := range files {
		d.kept.small.MoveToBack(f.element)
	}
}

// scanFolder adds the files of a folder to the index, and removes temporary ones.
func (d *Disk) scanFolder(root *os.Root, folder string, foreign *foreignFiles) {
	f, err := root.Open(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		d.fail("reading the folder of the media cache", err)
		return
	}
	defer f.Close()
	for {
		entries, err := f.ReadDir(scanBatch)
		for _, entry := range entries {
			if !isOfCache(folder, entry) {
				foreign.count, foreign.example = foreign.count+1, folder+"/"+entry.Name()
			} else if folder != "." {
				d.addFound(root, folder, entry.Name())
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				d.fail("reading the folder of the media cache", err)
			}
			return
		}
	}
}

// isOfCache reports whether the cache has made a file or folder.
func isOfCache(folder string, entry fs.DirEntry) bool {
	if folder == "." {
		first, err := hex.DecodeString(entry.Name())
		return err == nil && len(first) == 1 && entry.IsDir() || entry.Name() == lockName
	}
	_, ok := parseFileName(folder, strings.TrimSuffix(entry.Name(), temporary))
	return ok && entry.Type().IsRegular()
}

// addFound adds a file to the index, or removes it if it is a temporary one.
func (d *Disk) addFound(root *os.Root, folder, text string) {
	path := folder + "/" + text
	if strings.HasSuffix(text, temporary) {
		if err := remove(root, path); err != nil {
			d.fail("removing a temporary file of the media cache", err)
		}
		return
	}
	name, _ := parseFileName(folder, text)
	info, err := root.Lstat(path)
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.files[name] == nil {
		d.add(name, diskSize(info.Size()), info.ModTime().Unix())
	}
}
