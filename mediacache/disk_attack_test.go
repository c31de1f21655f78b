package mediacache

import (
	"testing"
	"testing/synctest"
)

// A process that stops in order, or a reload to a config without the disk, takes all uses back
// before it closes the disk. The files are there for the next start.
func TestUnusedDiskKeepsItsFiles(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		origin := &segments{size: 1000, control: "max-age=100"}
		s := newScene(origin.answer)
		s.addDisk(t, t.TempDir())
		s.want(t, "/1.ts", fromOrigin, origin.body("/1.ts"))
		s.emptyMemory(t)
		s.config.Disk.Release(MinDisk)
		synctest.Wait()
		s.restart(t)
		s.want(t, "/1.ts", diskHit, origin.body("/1.ts"))
	})
}
