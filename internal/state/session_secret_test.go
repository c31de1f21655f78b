package state

import (
	"bytes"
	"encoding/base64"
	"testing"
)

func knownSecret(t *testing.T, s *testState) [SecretLength]byte {
	t.Helper()
	secret := s.SessionSecret()
	if secret == nil {
		t.Fatal("the secret of sessions is unknown")
	}
	return *secret
}

// All nodes have one secret, whichever makes it, and a restart keeps it. Nothing is written
// before the start, and nothing where no config needs the secret.
func TestSessionSecretIsTheSameOnAllNodes(t *testing.T) {
	t.Parallel()
	f := newFleet()
	n := f.Join()
	first, second := newTestState(t, n), newTestState(t, f.Join())
	first.FollowSessionSecret(t.Context(), false)
	if first.SessionSecret() != nil || n.Count("update") != 0 {
		t.Error("a secret is made before the start")
	}
	first.FollowSessionSecret(t.Context(), true)
	second.FollowSessionSecret(t.Context(), true)
	third := newTestState(t, f.Join())
	third.FollowSessionSecret(t.Context(), false)
	secret := knownSecret(t, first)
	if secret == [SecretLength]byte{} || knownSecret(t, second) != secret || knownSecret(t, third) != secret {
		t.Error("two nodes have two secrets of sessions")
	}
	address := first.SessionSecret()
	first.FollowSessionSecret(t.Context(), true)
	if first.SessionSecret() != address {
		t.Error("the same secret is taken for a new one")
	}
}

// A node writes the secret back to a store that has lost it, so that the sessions that play
// go on. It follows a change by another node.
func TestSessionSecretSurvivesTheStore(t *testing.T) {
	t.Parallel()
	f := newFleet()
	s := newTestState(t, f.Join())
	s.FollowSessionSecret(t.Context(), true)
	secret, stored := knownSecret(t, s), f.Data(secretName)
	f.Write(secretName, "")
	s.Sync(t.Context())
	if f.Data(secretName) != stored || knownSecret(t, s) != secret {
		t.Errorf("the store has %q after it has lost the secret, want %q", f.Data(secretName), stored)
	}
	f.Write(secretName, `{"secret":"`+base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, SecretLength))+`"}`)
	s.Sync(t.Context())
	if knownSecret(t, s) != [SecretLength]byte(bytes.Repeat([]byte{7}, SecretLength)) {
		t.Error("a node does not follow a new secret")
	}
}

// The attack: somebody who can write to the store makes a secret that they know. A damaged
// one is neither used nor replaced, and the known one stays in force.
func TestDamagedSessionSecretIsNotUsed(t *testing.T) {
	t.Parallel()
	for _, data := range []string{damaged, "{", `{"secret":""}`, `{"secret":"AAAA"}`, `{}`, `null`} {
		f := newFleet()
		s := newTestState(t, f.Join())
		s.FollowSessionSecret(t.Context(), true)
		secret := knownSecret(t, s)
		f.Write(secretName, data)
		s.Sync(t.Context())
		if knownSecret(t, s) != secret {
			t.Errorf("%s: a damaged secret is in use", data)
		}
		fresh := newTestState(t, f.Join())
		fresh.FollowSessionSecret(t.Context(), true)
		if fresh.SessionSecret() != nil {
			t.Errorf("%s: a damaged secret is in use on a new node", data)
		}
		if data != damaged && f.Data(secretName) != data {
			t.Errorf("%s: it is replaced by %q", data, f.Data(secretName))
		}
	}
}

// A store that is away at the start is asked again.
func TestSessionSecretIsReadWhenTheStoreIsBack(t *testing.T) {
	t.Parallel()
	f := newFleet()
	n := f.Join()
	for _, away := range []step{down, on("get", "sessions", down), on("update", "sessions", down)} {
		s := newTestState(t, n)
		n.Intercept(away, nil)
		s.FollowSessionSecret(t.Context(), true)
		s.Sync(t.Context())
		if s.SessionSecret() != nil {
			t.Error("a secret is in use that no other node can know")
		}
		n.Intercept(nil, nil)
		s.Sync(t.Context())
		s.Sync(t.Context())
		knownSecret(t, s)
		f.Write(secretName, "")
	}
}
