package state

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

// After a secret of the store has changed, every object that an earlier one has written
// is rewritten with its data as it is, and a damaged one is left alone: rewriting that
// would make an attacker's object one of ours, or open a private video.
func TestOutdatedObjectsAreRenewed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		f.plantAll("a live", "b damaged", "v private", "w public")
		objects := f.Backup()
		for _, outdated := range []store.Name{keyNamed("a"), videoNamed("v")} {
			object := objects[outdated]
			object.Outdated = true
			objects[outdated] = object
		}
		f.Restore(objects)
		n := f.Join()
		fails := true
		n.Intercept(func(_ context.Context, operation string, name store.Name) error {
			if operation == "update" && fails && name == videoNamed("v") {
				fails = false
				return store.ErrBusy
			}
			return nil
		}, nil)
		s := newTestState(t, n)
		s.renewing = true
		s.Start()
		<-time.After(2 * rereadInterval)
		synctest.Wait()
		if got := n.Count("update"); got != 3 {
			t.Errorf("%d writes, want one of each outdated object, and the one that failed", got)
		}
		for name, object := range f.Backup() {
			if object.Outdated || string(object.Data) != string(objects[name].Data) || (object.Damage != nil) != (name == keyNamed("b")) {
				t.Errorf("%s has become %q, outdated %t, damage %v", name, object.Data, object.Outdated, object.Damage)
			}
		}
	})
}
