package sessions

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func tokenOwner(b byte) Owner { return Owner{Token: [32]byte{b}} }

// The owners differ in pairs that a careless encoding takes for one another.
var owners = []Owner{
	tokenOwner(1), tokenOwner(2),
	{Video: "film"},
	{Video: "films"},
	{Token: [32]byte{1}, Video: "film"},
	{Video: strings.Repeat("v", 64)},
	{Token: [32]byte([]byte(strings.Repeat("v", 32))), Video: strings.Repeat("v", 32)},
}

func TestSessionIDIsValidForItsOwnerOnly(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 999)
	a := NewAuthority([]byte("a secret of the fleet"))
	other := NewAuthority([]byte("a secret of another"))
	seen := make(map[Key]bool)
	for _, owner := range owners {
		text := a.New(owner, now)
		if len(text) != TextLength || !HasForm(Prefix+text) {
			t.Fatalf("New made %q, want %d characters", text, TextLength)
		}
		key, err := a.Verify(text, owner)
		if err != nil || seen[key] || !key.Begun().Equal(now.Truncate(time.Second)) {
			t.Errorf("Verify(%q): key %x that began %v, error %v; want a new key of now", text, key, key.Begun(), err)
		}
		seen[key] = true
		if known, ok := KeyIn(text); !ok || known != key {
			t.Errorf("KeyIn(%q) = %x, %t, want %x", text, known, ok, key)
		}
		for _, stranger := range owners {
			if _, err := a.Verify(text, stranger); stranger != owner && !errors.Is(err, ErrSession) {
				t.Errorf("a session of %v was replayed for %v: %v", owner, stranger, err)
			}
			// A new token of the viewer has another text for the same session.
			if again, err := a.Verify(a.Text(key, stranger), stranger); err != nil || again != key {
				t.Errorf("the text for another owner means %x, %v, want %x", again, err, key)
			}
		}
		if _, err := other.Verify(text, owner); !errors.Is(err, ErrSession) {
			t.Errorf("an authority with another secret accepts the session: %v", err)
		}
	}
}

func TestForgedSessionIDIsRefused(t *testing.T) {
	t.Parallel()
	a, owner := NewAuthority([]byte("secret")), tokenOwner(7)
	text := a.New(owner, time.Now())
	second := a.New(owner, time.Now())
	raw, _ := base64.RawURLEncoding.DecodeString(text)
	forged := map[string]string{
		"empty": "", "cut short": text[1:], "too long": text + "A", "twice": text + text,
		"padded": text + "=", "padded in its length": text[:31] + "=", "with a line break": text[:31] + "\n",
		"a line break more": text + "\n", "standard alphabet": strings.Repeat("+/", 16), "escaped": "%" + text[:31],
		"not ASCII": text[:30] + "é", "hexadecimal": strings.Repeat("0f", 16), "zero": strings.Repeat("A", 32),
		"two halves": text[:16] + second[16:],
	}
	for i := range raw { // each byte counts
		changed := []byte(string(raw))
		changed[i] ^= byte(1 + rand.IntN(255))
		forged["changed byte "+string(rune('a'+i))] = base64.RawURLEncoding.EncodeToString(changed)
	}
	for name, text := range forged {
		if key, err := a.Verify(text, owner); !errors.Is(err, ErrSession) || key != (Key{}) {
			t.Errorf("%s: Verify accepts a forged session: %x, %v", name, key, err)
		}
	}
}

func TestHasForm(t *testing.T) {
	t.Parallel()
	id := strings.Repeat("A", TextLength)
	for segment, want := range map[string]bool{
		"~" + id: true, "~" + id + "A": true, "~" + id + "=": true, "~" + strings.Repeat("+/", 16): true,
		"~" + id[1:]: false, id + "A": false, "~alice": false, "": false, "A~" + id: false,
	} {
		if got := HasForm(segment); got != want {
			t.Errorf("HasForm(%q) = %t, want %t", segment, got, want)
		}
	}
}

func TestKeysTellClientsApart(t *testing.T) {
	t.Parallel()
	a, again := NewAuthority([]byte("secret")), NewAuthority([]byte("secret"))
	seen := make(map[Key]string)
	check := func(name string, key, onAnotherNode Key) {
		t.Helper()
		if earlier, ok := seen[key]; ok || key != onAnotherNode {
			t.Errorf("%s has the key of %q, or another one on another node", name, earlier)
		}
		seen[key] = name
	}
	for i, owner := range owners {
		for _, text := range []string{"", "a", "b", strings.Repeat("a", 200)} {
			name := fmt.Sprintf("owner %d, %.3q", i, text)
			check(name, a.KeyOfPlayer(owner, text), again.KeyOfPlayer(owner, text))
			for _, address := range []string{"192.0.2.1", "192.0.3.1", "2001:db8::1", "2001:db8:1::1"} {
				check(name+" at "+address, a.KeyOfClient(owner, netip.MustParseAddr(address), text), again.KeyOfClient(owner, netip.MustParseAddr(address), text))
			}
			check(name+" at an unknown address", a.KeyOfClient(owner, netip.Addr{}, text), again.KeyOfClient(owner, netip.Addr{}, text))
		}
	}
	for _, same := range [][2]string{{"192.0.2.1", "192.0.2.255"}, {"2001:db8::1", "2001:db8:0:ffff::1"}, {"192.0.2.1", "::ffff:192.0.2.7"}} {
		if a.KeyOfClient(owners[0], netip.MustParseAddr(same[0]), "x") != a.KeyOfClient(owners[0], netip.MustParseAddr(same[1]), "x") {
			t.Errorf("%s and %s are two clients", same[0], same[1])
		}
	}
}

func TestVerifyAllocatesNothing(t *testing.T) {
	a, owner := NewAuthority([]byte("secret")), Owner{Video: "film"}
	text := a.New(owner, time.Now())
	// The race detector empties pools at random, so one of many runs counts.
	least := math.Inf(1)
	for range 100 {
		least = min(least, testing.AllocsPerRun(1, func() { _, _ = a.Verify(text, owner) }))
	}
	if least != 0 {
		t.Errorf("Verify allocates %v times", least)
	}
}

func BenchmarkVerify(b *testing.B) {
	a, owner := NewAuthority([]byte("secret")), tokenOwner(1)
	text := a.New(owner, time.Now())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Verify(text, owner); err != nil {
			b.Fatal(err)
		}
	}
}
