package store

import (
	"context"

	"github.com/redis/rueidis"
)

// Run runs a script on the Redis, for data that is not objects and may be lost: what runs
// now, which the nodes write back. All its keys must have the hash tag of the one key. It
// waits in the queue of viewers' lookups. Errors wrap ErrUnavailable.
func (r *Redis) Run(ctx context.Context, script *rueidis.Lua, key string, args []string) (rueidis.RedisMessage, error) {
	s, err := r.startedSession(ctx)
	if err != nil {
		return rueidis.RedisMessage{}, err
	}
	return await(ctx, r.calls, Viewer, func() (rueidis.RedisMessage, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		reply, err := script.Exec(ctx, s.client, []string{key}, args).ToMessage()
		if err != nil {
			return rueidis.RedisMessage{}, r.unavailable(err)
		}
		return reply, nil
	})
}

func (r *Redis) startedSession(ctx context.Context) (*session, error) {
	if err := r.start.await(ctx); err != nil {
		return nil, err
	}
	return r.connected(ctx)
}

// Subscribe calls received for each message of a channel, and subscribed whenever a
// subscription begins: messages of before may have been lost. It returns when the
// connection or the context ends.
func (r *Redis) Subscribe(ctx context.Context, channel string, subscribed func(), received func(message string)) error {
	s, err := r.startedSession(ctx)
	if err != nil {
		return err
	}
	ctx = rueidis.WithOnSubscriptionHook(ctx, func(s rueidis.PubSubSubscription) {
		if s.Kind == "subscribe" {
			subscribed()
		}
	})
	err = s.client.Receive(ctx, s.client.B().Subscribe().Channel(channel).Build(), func(m rueidis.PubSubMessage) { received(m.Message) })
	if err != nil {
		return r.unavailable(err)
	}
	return nil
}
