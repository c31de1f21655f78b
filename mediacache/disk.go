package mediacache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/signed-playback/caddy-signed-playback/internal/queue"
)

// Disk is the second tier of caches: files in a folder of its own. A fill looks here
// before it asks the origin. Objects come here after their fill, if they stay fresh for a
// while. What fails here costs a request to the origin, never an answer to a viewer.
//
// One goroutine changes files: it scans the folder after the start, writes, and evicts. Which
// files to drop is decided by S3-FIFO, as in memory, so a scan of old titles passes through a
// tenth of the disk. It is safe for concurrent use.
type Disk struct {
	path   string
	warn   func(message string, err error)
	now    func() time.Time
	worth  time.Duration // worthDisk
	reads  *queue.Queue
	open   func(root *os.Root, path string) (diskReader, int64, error)
	create func(root *os.Root, path string) (diskWriter, error)

	wake chan struct{}
	stop context.CancelFunc
	done chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex
	root    *os.Root // nil while the disk is not open
	lock    *os.File
	sizes   []int64 // of the configs that use the disk; the largest counts
	used    int64
	files   map[fileName]*diskFile
	scanned bool // files has all

	kept s3fifo[fileName]

	jobs    []*diskJob
	pending int64    // memory of the bodies that wait to be written, and of the one being written
	current *diskJob // being written
	doomed  []fileName
	purged  map[groupDigest]int64 // files of earlier generations are not used any more
	purging bool                  // and the index may have some
	warned  time.Time
}

type diskReader interface {
	io.ReaderAt
	io.Closer
}

type diskWriter interface {
	io.WriterAt
	io.Closer
}

// diskJob is an object that waits to be written.
type diskJob struct {
	name      fileName
	key       []byte
	object    *object
	reader    *reader // keeps the body in memory
	size      int64   // of the body in memory
	cancelled bool
}

const (
	diskBlock  = 4 << 10         // of a file system
	diskFolder = 257 * diskBlock // 256 folders and the one with them
	maxJobs    = 64

	// bytesPerFile bounds the files, and so the memory for the index, to 1/300 of the size.
	bytesPerFile = 64 << 10

	// worthDisk is how long an object must stay fresh to be written. So live playlists, and
	// what is revalidated each time, do not wear the disk.
	worthDisk = 10 * time.Second

	// MinDisk is the least size of a Disk.
	MinDisk = 16 << 20

	// A disk may hang, for example one on the network. Each read that hangs takes a thread, so
	// there are few, and the origin is asked after a while.
	maxReads        = 128
	maxReadsWaiting = 1024
	readWithin      = 3 * time.Second
	closeWithin     = 5 * time.Second

	warnEvery = time.Minute
	lookEvery = time.Minute // at the folder, which somebody may remove or remount
	lockName  = "lock"
	temporary = ".tmp"
)

// diskSize is what a file takes: its blocks, and one for its inode and its name.
func diskSize(size int64) int64 { return (size+diskBlock-1)/diskBlock*diskBlock + diskBlock }

// NewDisk returns a disk tier in a folder, which is created if it is missing. It does
// nothing before Open. warn is told about failures, at most once a minute.
func NewDisk(path string, warn func(message string, err error)) *Disk {
	return &Disk{
		path: path, warn: warn, now: time.Now, worth: worthDisk, open: openRegular, create: createFile, wake: make(chan struct{}, 1),
		purged: map[groupDigest]int64{},
		reads:  queue.New(semaphore.NewWeighted(maxReads), maxReadsWaiting, time.Second),
	}
}

// Use adds a config that uses at most so many bytes of the disk. Release takes it back.
func (d *Disk) Use(size int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sizes = append(d.sizes, size)
}

// Release ends a Use.
func (d *Disk) Release(size int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(d.sizes, size); i >= 0 {
		d.sizes = slices.Delete(d.sizes, i, i+1)
	}
	d.wakeUp()
}

// Open locks the folder and begins to scan it. It does nothing if the disk is open.
// The error says what to do.
func (d *Disk) Open() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root != nil {
		return nil
	}
	root, lock, err := openFolder(d.path)
	if err != nil {
		return err
	}
	d.begin(root, lock)
	var ctx context.Context
	ctx, d.stop = context.WithCancel(context.Background())
	d.done = make(chan struct{})
	go d.run(ctx, root, d.done)
	return nil
}

// begin forgets all files, before a scan of the folder. The caller has locked the disk.
func (d *Disk) begin(root *os.Root, lock *os.File) {
	d.root, d.lock = root, lock
	d.files, d.kept, d.used, d.doomed, d.scanned = map[fileName]*diskFile{}, s3fifo[fileName]{}, diskFolder, nil, false
}

// openFolder opens and locks a folder, which it creates if it is missing.
func openFolder(path string) (root *os.Root, lock *os.File, err error) {
	if err = os.MkdirAll(path, 0o700); err == nil {
		root, err = os.OpenRoot(path)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("disk %q: want a folder that Caddy may write: %w", path, err)
	}
	if err = checkFolder(root, os.Geteuid()); err == nil {
		lock, err = lockFolder(root)
	}
	if err != nil {
		root.Close()
		return nil, nil, fmt.Errorf("disk %q: %w", path, err)
	}
	return root, lock, nil
}

func lockFolder(root *os.Root) (*os.File, error) {
	lock, err := root.OpenFile(lockName, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("want a folder that Caddy may write: %w", err)
	}
	if err := lockFile(lock); err != nil {
		lock.Close()
		return nil, fmt.Errorf("another process uses this folder, or it cannot be locked; name one that only this process uses: %w", err)
	}
	return lock, nil
}

// reopen returns the folder at the path of the disk. If somebody has removed or remounted that
// of root, it is another one.
func (d *Disk) reopen(ctx context.Context, root *os.Root) *os.Root {
	open, err := root.Stat(".")
	named, errNamed := os.Stat(d.path)
	if err == nil && errNamed == nil && os.SameFile(open, named) {
		return root
	}
	next, lock, err := openFolder(d.path)
	if err != nil {
		d.fail("the folder of the media cache has vanished; the cache tries to open it again every minute", err)
		return root
	}
	d.mu.Lock()
	old, oldLock := root, d.lock
	if d.root == nil { // closed meanwhile
		old, oldLock, next = next, lock, root
	} else {
		d.begin(next, lock)
	}
	d.mu.Unlock()
	old.Close()
	oldLock.Close()
	d.scan(ctx, next)
	return next
}

// checkFolder refuses a folder in which other users may put files: they would decide what viewers get.
// Root can use a folder that another user has made, for example in /tmp.
func checkFolder(root *os.Root, user int) error {
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	if owner := ownerOf(info); owner != user {
		return fmt.Errorf("this folder belongs to the user %d, and Caddy runs as %d; give it to that user with chown, or name a folder in it that does not exist yet", owner, user)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("other users may write to this folder, which has mode %04o; take that from them with chmod go-w, or name a folder in it that does not exist yet", mode)
	}
	return nil
}

// Close ends the use of the folder. What waits to be written is lost. While the disk hangs, the
// folder stays locked.
func (d *Disk) Close() {
	d.mu.Lock()
	root, lock := d.root, d.lock
	d.root = nil
	d.mu.Unlock()
	if root == nil {
		return
	}
	d.stop()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		<-d.done
		for d.take() != nil {
			d.finish()
		}
		root.Close()
		lock.Close()
	}()
	select {
	case <-closed:
	case <-time.After(closeWithin):
		d.warn("closing the folder of the media cache", errHangs)
	}
}

var errHangs = errors.New("mediacache: the disk does not answer")

// read does something that reads from the disk, and returns without a result if that hangs.
func read[T any](ctx context.Context, d *Disk, do func() (T, error)) (result T, err error) {
	if err := d.reads.Enter(ctx, 1); err != nil {
		return result, err
	}
	type outcome struct {
		result T
		err    error
	}
	done := make(chan outcome, 1)
	go func() {
		defer d.reads.Leave(1)
		result, err := do()
		done <- outcome{result, err}
	}()
	timer := time.NewTimer(readWithin)
	defer timer.Stop()
	select {
	case o := <-done:
		return o.result, o.err
	case <-timer.C:
		return result, errHangs
	}
}

// Usage returns how many files the disk has, and how many bytes they take.
func (d *Disk) Usage() (objects int, bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.files), d.used
}

func (d *Disk) wakeUp() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// fail tells of a failure.
func (d *Disk) fail(message string, err error) {
	d.mu.Lock()
	now := d.now()
	quiet := d.root == nil || now.Sub(d.warned) < warnEvery && !now.Before(d.warned)
	if !quiet {
		d.warned = now
	}
	d.mu.Unlock()
	if !quiet {
		d.warn(message, err)
	}
}

// find opens the file of an object. It is nil if there is none that can be used.
func (d *Disk) find(ctx context.Context, site string, k key) *stored {
	if d == nil {
		return nil
	}
	encoded := encodeKey(site, k)
	name := fileNameOf(k, encoded)
	d.mu.Lock()
	root, f := d.root, d.files[name]
	usable := root != nil && (f == nil && !d.scanned || f != nil && !f.doomed)
	if f != nil && usable {
		f.hit()
	}
	d.mu.Unlock()
	if !usable {
		return nil
	}
	s, err := read(ctx, d, func() (*stored, error) {
		file, size, err := d.open(root, name.path())
		if err != nil {
			return nil, err
		}
		s, err := openStored(file, size, encoded)
		if err != nil {
			file.Close()
		}
		return s, err
	})
	if err != nil {
		d.broken(name, err)
		return nil
	}
	s.drop = func(err error) { d.broken(name, err) }
	return s
}

// broken deals with a file that cannot be read.
func (d *Disk) broken(name fileName, err error) {
	switch {
	case errors.Is(err, context.Canceled): // nobody waits for it any more
	case errors.Is(err, fs.ErrNotExist):
		d.mu.Lock()
		d.forget(d.files[name])
		d.mu.Unlock()
	case errors.Is(err, errDamaged):
		d.remove(name)
		d.fail("removing a damaged file of the media cache; the origin is asked instead", fmt.Errorf("%s: %w", name.path(), err))
	default:
		d.fail("reading a file of the media cache; the origin is asked instead", err)
	}
}

// put writes an object soon, if there is time. limit is how much memory the objects that
// wait may take together.
func (d *Disk) put(site string, k key, o *object, limit int64) {
	isWhole := o.status == 200 || o.status == 206 && k.slice > 0
	if d == nil || !isWhole || o.freshness.lifetime-o.age(d.now()) < d.worth {
		return
	}
	encoded := encodeKey(site, k)
	size := o.size()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root == nil || len(d.jobs) >= maxJobs || d.pending > 0 && d.pending+size > limit {
		return
	}
	d.jobs = append(d.jobs, &diskJob{name: fileNameOf(k, encoded), key: encoded, object: o, reader: o.body.read(), size: size})
	d.pending += size
	d.wakeUp()
}

// forgetObject drops an object.
func (d *Disk) forgetObject(site string, k key) {
	if d != nil {
		d.remove(fileNameOf(k, encodeKey(site, k)))
	}
}

// remove drops the file of an object, and what waits to be written to it.
func (d *Disk) remove(name fileName) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root == nil {
		return
	}
	for _, j := range append(d.jobs, d.current) {
		if j != nil && j.name == name {
			j.cancelled = true
		}
	}
	f := d.files[name]
	if f == nil {
		if d.scanned {
			return
		}
		f = d.add(name, 0, 0)
	}
	d.doom(f)
}

// purge removes the files of a group from before a generation, soon.
func (d *Disk) purge(group string, generation int64) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if of := digestOf(group); d.purged[of] < generation {
		d.purged[of], d.purging = generation, true
		d.wakeUp()
	}
}

// isPurged reports whether a later generation is known. The caller has locked the disk.
func (d *Disk) isPurged(name fileName) bool { return name.generation() < d.purged[name.group()] }

// doomPurged marks the files of earlier generations.
func (d *Disk) doomPurged() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.purging {
		return
	}
	d.purging = false
	for name, f := range d.files {
		if d.isPurged(name) {
			d.doom(f)
		}
	}
}

// run is the goroutine that changes files.
func (d *Disk) run(ctx context.Context, root *os.Root, done chan<- struct{}) {
	defer close(done)
	d.scan(ctx, root)
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for ctx.Err() == nil {
		d.work(ctx, root)
		select {
		case <-d.wake:
		case <-look.C:
			root = d.reopen(ctx, root)
		case <-ctx.Done():
		}
	}
}

// work does all that waits.
func (d *Disk) work(ctx context.Context, root *os.Root) {
	d.doomPurged()
	d.removeDoomed(root)
	if err := d.makeRoom(root, 0); err != nil {
		d.fail("removing a file of the media cache", err)
	}
	for ctx.Err() == nil {
		j := d.take()
		if j == nil {
			return
		}
		if err := d.store(root, j); err != nil {
			d.fail("writing a file of the media cache; the cache works on without it", err)
		}
		d.finish()
		d.removeDoomed(root)
	}
}

// take returns the next object to write, or nil.
func (d *Disk) take() *diskJob {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.jobs) == 0 {
		return nil
	}
	d.current, d.jobs = d.jobs[0], d.jobs[1:]
	return d.current
}

func (d *Disk) finish() {
	d.mu.Lock()
	j := d.current
	d.current = nil
	d.pending -= j.size
	d.mu.Unlock()
	j.reader.close()
}

// store writes an object to a temporary file and gives that its name. A process that
// is killed meanwhile leaves a temporary file, which the next one removes.
func (d *Disk) store(root *os.Root, j *diskJob) error {
	header, size := newFileHeader(j.object, j.key, d.now())
	d.mu.Lock()
	useless := j.cancelled || diskSize(size) > d.max()/2
	d.mu.Unlock()
	if useless {
		return nil
	}
	if err := d.makeRoom(root, diskSize(size)); err != nil {
		return err
	}
	path := j.name.path()
	if err := root.Mkdir(j.name.folder(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	f, err := d.create(root, path+temporary)
	if err != nil {
		return err
	}
	err = header.write(f, j.reader, size)
	if err = errors.Join(err, f.Close()); err == nil {
		err = root.Rename(path+temporary, path)
	}
	if err != nil {
		return errors.Join(err, remove(root, path+temporary))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget(d.files[j.name])
	added := d.add(j.name, diskSize(size), d.now().Unix())
	if j.cancelled {
		d.doom(added)
	}
	return nil
}

// makeRoom evicts files until there is room for so many bytes.
func (d *Disk) makeRoom(root *os.Root, size int64) error {
	for {
		f := d.victim(size)
		if f == nil {
			return nil
		}
		if err := d.delete(root, f); err != nil {
			return err
		}
	}
}

// removeDoomed removes the files that are not used any more. What cannot be removed is
// tried again later.
func (d *Disk) removeDoomed(root *os.Root) {
	d.mu.Lock()
	names := d.doomed
	d.doomed = nil
	d.mu.Unlock()
	for i, name := range names {
		d.mu.Lock()
		f := d.files[name]
		d.mu.Unlock()
		if f == nil || !f.doomed {
			continue
		}
		if err := d.delete(root, f); err != nil {
			d.mu.Lock()
			d.doomed = append(d.doomed, names[i:]...)
			d.mu.Unlock()
			d.fail("removing a file of the media cache", err)
			return
		}
	}
}

// delete removes a file and forgets it.
func (d *Disk) delete(root *os.Root, f *diskFile) error {
	if err := remove(root, f.name.path()); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget(f)
	return nil
}

// remove removes a file that may be gone already.
func remove(root *os.Root, path string) error {
	if err := root.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// openRegular opens a file for reading, if it is a regular one and not a link to one.
func openRegular(root *os.Root, path string) (diskReader, int64, error) {
	named, err := root.Lstat(path)
	if err != nil {
		return nil, 0, err
	}
	if !named.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s is no regular file: %w", path, errDamaged)
	}
	f, err := root.Open(path)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !os.SameFile(info, named) {
		err = fs.ErrNotExist // it has just been replaced
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// createFile creates a file that only Caddy may read.
func createFile(root *os.Root, path string) (diskWriter, error) {
	if err := remove(root, path); err != nil {
		return nil, err
	}
	return root.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}
