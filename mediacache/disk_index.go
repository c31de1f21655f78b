package mediacache

import "slices"

// diskFile is a file in the index. It takes about 200 bytes of memory.
type diskFile struct {
	name    fileName
	written int64 // Unix time, for the order after a scan
	doomed  bool  // to be removed, and not used any more
	place         // whose size includes overheads
}

func (f *diskFile) id() fileName { return f.name }

func (d *Disk) doom(f *diskFile) {
	if !f.doomed {
		f.doomed = true
		f.hits.Store(0)
		d.doomed = append(d.doomed, f.name)
		d.wakeUp()
	}
}

// add puts a file into the index. The caller has locked the disk, and no file of this
// name is there.
func (d *Disk) add(name fileName, size, written int64) *diskFile {
	f := &diskFile{name: name, written: written}
	f.size = size
	d.files[name] = f
	d.used += size
	d.kept.add(f)
	if d.isPurged(name) {
		d.doom(f)
	}
	return f
}

// forget takes a file out of the index. The caller has locked the disk.
func (d *Disk) forget(f *diskFile) {
	if f != nil && d.files[f.name] == f {
		f.leave()
		delete(d.files, f.name)
		d.used -= f.size
	}
}

// max is the size of the disk. The caller has locked the disk.
func (d *Disk) max() int64 {
	if len(d.sizes) == 0 {
		return 0
	}
	return slices.Max(d.sizes)
}

// victim returns the file to evict, or nil if there is room. A disk that is closed, or that
// no config uses any more, keeps its files for the next one.
func (d *Disk) victim(size int64) *diskFile {
	d.mu.Lock()
	defer d.mu.Unlock()
	bound := d.max()
	if d.root == nil || len(d.sizes) == 0 || len(d.files) == 0 || d.used+size <= bound && int64(len(d.files)) < max(bound/bytesPerFile, 1) {
		return nil
	}
	f, _ := d.kept.victim(bound, func(queued[fileName]) bool { return false }).(*diskFile)
	return f
}
