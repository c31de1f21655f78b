package sessions

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

// Attack: a session that a former secret has authenticated plays on, because its token remembers it.
func TestMemoryForgetsWithTheSecret(t *testing.T) {
	t.Parallel()
	secrets := []*[32]byte{{1}, {2}}
	now := 0
	source := &Source{Stored: func() *[32]byte { return secrets[now] }}
	before := source.Authority()
	memory, owner, player := new(Memory), tokenOwner(1), Player{Address: netip.MustParseAddr("203.0.113.7"), Text: "agent"}
	text := before.New(owner, time.Unix(1_800_000_000, 0))
	for range 2 {
		if _, err := memory.Verify(before, text, owner); err != nil {
			t.Fatal(err)
		}
	}
	key := memory.KeyOf(before, player, owner)
	now = 1
	after := source.Authority()
	if _, err := memory.Verify(after, text, owner); !errors.Is(err, ErrSession) {
		t.Errorf("a session of the former secret: %v", err)
	}
	if memory.KeyOf(after, player, owner) == key || source.Authority() != after {
		t.Error("the key of a client is that of the former secret, or an authority is made again")
	}
}
