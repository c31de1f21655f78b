package state

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

// renewAll writes every outdated object with the present secret of the store, and
// tries again until it has.
func (s *State) renewAll() {
	for {
		renewed, err := s.renew(s.ctx)
		if err == nil {
			s.logger().Info("the first secret of store_secret authenticates every object in the store; once all nodes use it first, the config needs no other one",
				zap.Int("rewritten", renewed))
			return
		}
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(rereadInterval):
			s.logger().Warn("could not rewrite all objects with the present store_secret; trying again", zap.Error(err))
		}
	}
}

// renew does not touch damaged objects, because it cannot read them.
func (s *State) renew(ctx context.Context) (renewed int, failure error) {
	for _, collection := range store.Collections() {
		for object, err := range s.store.All(ctx, collection) {
			if err == nil && object.Outdated {
				err = s.update(ctx, object.Name, rewrite)
			}
			switch {
			case err != nil:
				failure = errors.Join(failure, err)
			case object.Outdated:
				renewed++
			}
		}
	}
	return renewed, failure
}

// rewrite is a store.Change that keeps an object as it is.
func rewrite(present store.Object) ([]byte, error) { return present.Data, present.Damage }
