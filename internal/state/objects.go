package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

// Errors of a State.
var (
	// ErrUnavailable is the error of a call that needs the store while it does
	// not answer. A change that was asked for may have been made.
	ErrUnavailable = store.ErrUnavailable

	// ErrLimited is the error of a lookup while strangers cause too many.
	ErrLimited = store.ErrLimited

	// ErrBusy is ErrUnavailable for one object, which another node is writing.
	ErrBusy = store.ErrBusy

	// ErrDamaged is the error for an object in the store that cannot be trusted.
	ErrDamaged = store.ErrDamaged
)

var errNoAnswer = fmt.Errorf("%w: it has not answered lately", ErrUnavailable)

// oneCall returns a context for one call of the store. The caller must call done
// with the call's error.
func (s *State) oneCall(ctx context.Context) (calling context.Context, done func(error)) {
	calling, cancel := context.WithTimeout(ctx, slowTimeout)
	answers := s.answers.Load()
	silence := time.AfterFunc(callTimeout, func() {
		if s.answers.Load() == answers {
			cancel()
		}
	})
	return calling, func(err error) {
		if !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrLimited) {
			s.answers.Add(1)
		}
		silence.Stop()
		cancel()
	}
}

// get reads one object and counts a failure of the store.
func (s *State) get(ctx context.Context, name store.Name, caller store.Caller) (store.Object, error) {
	ctx, done := s.oneCall(ctx)
	object, err := s.store.Get(ctx, name, caller)
	if done(err); err != nil && !errors.Is(err, ErrLimited) {
		return store.Object{}, s.failed("get", err)
	}
	return object, err
}

// update changes one object and counts a failure of the store. Once begun, it
// goes on without its caller.
func (s *State) update(ctx context.Context, name store.Name, change store.Change) error {
	if s.Unavailable() {
		return s.failed("update", errNoAnswer)
	}
	ctx, done := s.oneCall(context.WithoutCancel(ctx))
	err := s.store.Update(ctx, name, change)
	if done(err); errors.Is(err, ErrUnavailable) {
		return s.failed("update", err)
	}
	return err
}

func (s *State) failed(operation string, err error) error {
	s.countError(operation)
	return err
}

// decode decodes the content of an object. Damage is counted, and logged with
// the object's name, so that somebody mends it.
func (s *State) decode(object store.Object, into any) error {
	if object.Damage != nil {
		return s.damaged(object.Name, object.Damage)
	}
	if err := json.Unmarshal(object.Data, into); err != nil {
		return s.damaged(object.Name, err)
	}
	return nil
}

// damaged returns ErrDamaged for an object and reports the damage.
func (s *State) damaged(name store.Name, why error) error {
	if !errors.Is(why, ErrDamaged) {
		why = fmt.Errorf("%w: %s: %w", ErrDamaged, name, why)
	}
	s.logger().Error("an object in the store is damaged, so what depends on it is refused",
		zap.Stringer("object", name), zap.Error(why))
	return s.failed("decode", why)
}

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
		for object, err := range store.All(ctx, s.store, collection) {
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
