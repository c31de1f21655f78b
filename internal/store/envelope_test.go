package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

var (
	secretA = strings.Repeat("a", MinSecret)
	secretB = strings.Repeat("b", MinSecret)
)

func secretsOf(t testing.TB, secrets ...string) *Secrets {
	t.Helper()
	s, err := NewSecrets(secrets...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// tampering is a store whose bytes an attacker reads and writes.
type tampering struct {
	open func(*Secrets) Store
	read func(Name) []byte
	put  func(Name, []byte)
}

func onEachTampering(t *testing.T, test func(t *testing.T, s tampering)) {
	t.Helper()
	t.Run("caddy", func(t *testing.T) {
		t.Parallel()
		m := newMemStorage()
		test(t, tampering{
			open: func(secrets *Secrets) Store {
				s := NewCaddy(as[certmagic.Storage](m), zap.NewNop, secrets)
				s.Start()
				return s
			},
			read: func(name Name) []byte { raw, _ := m.Load(t.Context(), objectPath(name)); return raw },
			put:  func(name Name, raw []byte) { m.put(objectPath(name), raw) },
		})
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		server := startRedis(t)
		test(t, tampering{
			open: func(secrets *Secrets) Store {
				r, err := NewRedis(server.address(), as[certmagic.Storage](newMemStorage()), zap.NewNop, secrets)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(r.Close)
				r.Start()
				return r
			},
			read: func(name Name) []byte { return value(server.do(t, "HGET", hashOf(name.collection), name.id)) },
			put:  func(name Name, raw []byte) { server.do(t, "HSET", hashOf(name.collection), name.id, string(raw)) },
		})
	})
}

// The attack: somebody who can write into the store makes a key or a setting, changes
// one, moves one to another name, or reads the signing key. Whatever the secret does not
// authenticate under its name is damage, which fails closed.
func TestTamperingIsDamage(t *testing.T) {
	t.Parallel()
	onEachTampering(t, func(t *testing.T, at tampering) {
		const data, private = `{"uid":"v"}`, `{"pem":"-----BEGIN RSA PRIVATE KEY-----"}`
		video, other, key, signing := named(Videos, "v"), named(Videos, "w"), named(Keys, "v"), named(Signing, "current")
		a, b, none := at.open(secretsOf(t, secretA)), at.open(secretsOf(t, secretB)), at.open(nil)
		write(t, a, video, data)
		write(t, a, signing, private)
		good, sealed := at.read(video), at.read(signing)
		wantObject(t, a, video, data)
		wantObject(t, a, signing, private)
		if bytes.Contains(sealed, []byte("PRIVATE")) || bytes.Contains(sealed, []byte("pem")) {
			t.Errorf("the signing key is stored as %s", sealed)
		}
		write(t, a, signing, private)
		if again := at.read(signing); bytes.Equal(again, sealed) {
			t.Error("the signing key is encrypted twice with the same nonce")
		}

		write(t, b, other, data)
		ofB := at.read(other)
		write(t, none, other, data)
		plain := at.read(other)
		swap := func(from, to string) []byte { return bytes.ReplaceAll(good, []byte(from), []byte(to)) }
		for what, forged := range map[string]struct {
			name Name
			raw  []byte
		}{
			"of nobody":                 {other, plain},
			"of another secret":         {other, ofB},
			"of another video":          {other, good},
			"renamed":                   {other, swap("videos/v", "videos/w")},
			"moved to the keys":         {key, good},
			"renamed to a key":          {key, swap("videos/v", "keys/v")},
			"changed":                   {video, swap(`"uid":"v"`, `"uid":"w"`)},
			"white space added":         {video, swap(`{"uid"`, `{ "uid"`)},
			"of the earlier format":     {video, swap(`"signed_playback":2`, `"signed_playback":1`)},
			"without its authenticator": {video, swap("hmac", "hmaC_")},
			"two authenticators":        {video, swap(`"data"`, `"hmac":"00","data"`)},
			"a setting as signing key":  {signing, good},
			"a signing key in clear":    {signing, fmt.Appendf(nil, `{"signed_playback":2,"name":"signing/current","hmac":"","data":%s}`, private)},
			"empty":                     {video, []byte{}},
			"garbage":                   {video, []byte("x")},
			"a digest of it":            {video, swap(`"signed_playback":2`, `"sha256":"`+digest([]byte(data))+`","signed_playback":1`)},
		} {
			at.put(forged.name, forged.raw)
			if object, err := a.Get(t.Context(), forged.name, Server); err != nil || object.Damage == nil || object.Data != nil {
				t.Errorf("%s: Get = %q, damage %v, %v, want damage", what, object.Data, object.Damage, err)
			} else if strings.Contains(object.Damage.Error(), secretA) {
				t.Errorf("%s: the damage contains the secret: %v", what, object.Damage)
			}
			for object, err := range All(t.Context(), a, forged.name.collection) {
				if err != nil || object.Name == forged.name && object.Damage == nil {
					t.Errorf("%s: All = %q, %v, want damage", what, object.Data, err)
				}
			}
		}
		for name, raw := range map[Name][]byte{video: good, signing: sealed} {
			for i := range raw {
				if i == len(raw)-1 {
					continue // a line feed
				}
				flipped := bytes.Clone(raw)
				flipped[i] ^= 1
				for _, changed := range [][]byte{flipped, raw[:i]} {
					// An attacker may write a digit of the authenticator in capitals, which changes nothing.
					if object := secretsOf(t, secretA).decode(name, changed); object.Damage == nil && !bytes.EqualFold(changed, raw) {
						t.Fatalf("%s with byte %d changed is accepted: %s", name, i, changed)
					}
				}
			}
		}
		for _, replacement := range []string{data, ""} { // a call replaces and removes what is damaged
			at.put(video, nil)
			wantDamage(t, a, video)
			write(t, a, video, replacement)
			wantObject(t, a, video, replacement)
		}
		at.put(video, good)
		wantObject(t, a, video, data)
		wantDamage(t, b, video)
		wantDamage(t, none, video) // a node without the secret does not take it for missing
	})
}

// A new secret takes the place of an earlier one, or of none: objects of either are
// accepted while the config names it, and an update writes them under the new one.
func TestSecretsAreReplaced(t *testing.T) {
	t.Parallel()
	for name, earlier := range map[string]string{"another secret": secretB, "none": Plain} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onEachTampering(t, func(t *testing.T, at tampering) {
				before, both, after := at.open(secretsOf(t, secretB)), at.open(secretsOf(t, secretA, earlier)), at.open(secretsOf(t, secretA))
				if earlier == Plain {
					before = at.open(nil)
				}
				for _, object := range []Name{named(Videos, "v"), named(Keys, "k"), named(Signing, "current")} {
					const data = `{"n":1}`
					write(t, before, object, data)
					wantDamage(t, after, object)
					found, err := both.Get(t.Context(), object, Server)
					if err != nil || string(found.Data) != data || !found.Outdated {
						t.Errorf("%s: Get = %q, outdated %t, damage %v, %v, want it outdated", object, found.Data, found.Outdated, found.Damage, err)
					}
					if err := both.Update(t.Context(), object, func(present Object) ([]byte, error) { return present.Data, nil }); err != nil {
						t.Error(err)
					}
					wantObject(t, after, object, data)
					wantDamage(t, before, object)
					if found, err := both.Get(t.Context(), object, Server); err != nil || found.Outdated {
						t.Errorf("%s is outdated after its update (%v)", object, err)
					}
				}
			})
		})
	}
}

func TestNewSecrets(t *testing.T) {
	t.Parallel()
	short := strings.Repeat("s", MinSecret-1)
	for want, secrets := range map[string][]string{
		"secret 1 has 0 characters":  {""},
		"secret 1 has 5 characters":  {Plain}, // which is no secret
		"secret 1 has 15 characters": {short},
		"secret 2 has 15 characters": {secretA, short},
		"secret 2 is repeated":       {secretA, secretA},
		"secret 3 is repeated":       {secretA, secretB, secretB},
	} {
		if _, err := NewSecrets(secrets...); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), short) {
			t.Errorf("NewSecrets(%q) = %v, want %q and no secret", secrets, err, want)
		}
	}
	if s, err := NewSecrets(); s != nil || err != nil {
		t.Errorf("NewSecrets() = %v, %v, want neither", s, err)
	}
}

// S4: an object that is cut off, changed, or under another name is damaged. It must never
// count as missing, which would mean "not revoked" and "no settings".
func TestForeignBytesAreDamage(t *testing.T) {
	t.Parallel()
	name := named(Videos, "v")
	good, err := encode(name, []byte(`{"uid":"v","requireSignedURLs":true}`))
	if err != nil {
		t.Fatal(err)
	}
	envelopeOf := func(change func(*envelope)) []byte {
		data := json.RawMessage(`{"uid":"v"}`)
		s := envelope{Format: digested, Name: name.String(), SHA256: digest(data), Data: data}
		change(&s)
		raw, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	if object := decode(name, envelopeOf(func(*envelope) {})); object.Damage != nil {
		t.Fatalf("what the rows differ from is damaged: %v", object.Damage)
	}
	cases := map[string][]byte{
		"empty":                         {},
		"NULs, as after a crash":        make([]byte, len(good)),
		"null":                          []byte("null"),
		"another document":              []byte(`{"requireSignedURLs":false}`),
		"empty object":                  []byte("{}"),
		"twice":                         slices.Concat(good, good),
		"a rest of what was longer":     slices.Concat(good, good[len(good)-3:]),
		"content without its envelope":  []byte(`{"uid":"v","requireSignedURLs":true}`),
		"of another object":             envelopeOf(func(s *envelope) { s.Name = "videos/w" }),
		"of another collection":         envelopeOf(func(s *envelope) { s.Name = "keys/v" }),
		"without a name":                envelopeOf(func(s *envelope) { s.Name = "" }),
		"of a later version":            envelopeOf(func(s *envelope) { s.Format = 3 }),
		"authenticated, but not here":   envelopeOf(func(s *envelope) { s.Format = authenticated }),
		"of no version":                 envelopeOf(func(s *envelope) { s.Format = 0 }),
		"digest of something else":      envelopeOf(func(s *envelope) { s.SHA256 = digest([]byte("{}")) }),
		"digest in capitals":            envelopeOf(func(s *envelope) { s.SHA256 = strings.ToUpper(s.SHA256) }),
		"no digest":                     envelopeOf(func(s *envelope) { s.SHA256 = "" }),
		"content of something else":     envelopeOf(func(s *envelope) { s.Data = json.RawMessage(`{"uid":"w"}`) }),
		"content null under its digest": envelopeOf(func(s *envelope) { s.Data = nil }),
		"no content, digest of nothing": fmt.Appendf(nil, `{"signed_playback":1,"name":"videos/v","sha256":%q}`, digest(nil)),
	}
	for length := range len(good) - 1 { // the last byte is a line feed
		cases[fmt.Sprintf("cut to %d bytes", length)] = good[:length]
	}
	for what, raw := range cases {
		object := decode(name, raw)
		if !errors.Is(object.Damage, ErrDamaged) || object.Data != nil || object.Name != name {
			t.Errorf("%s: decode(%.100q) = data %q, damage %v; want damage and no data", what, raw, object.Data, object.Damage)
		}
		if object.Damage != nil && !strings.Contains(object.Damage.Error(), name.String()) {
			t.Errorf("%s: the damage does not name the object: %v", what, object.Damage)
		}
	}
}

// FuzzEnvelope checks that encode accepts JSON only, that decode returns the data of encode,
// and that one changed byte is damage or does not change the data.
func FuzzEnvelope(f *testing.F) {
	name := named(Keys, "k")
	for i, data := range []string{
		`{"id":"k","revoked":"2026-01-02T03:04:05Z"}`, `null`, ` { "a" : [ 1 , 2 ] } `, `"<\u2028&>"`, `{`, ``, `{"a":"` + "\xff" + `"}`, `-0`,
		`[]`, `""`, `{"a":1,"a":2}`, "{\"line\":\"\u2028\u2029\"}", `{"escaped":"\u003c\ud83d\ude00\/"}`, `{"number":1.0e+10}`, `12345678901234567890`,
		`{"data":{"sha256":"x"}}`, "{}{}", "nul", `{"a":1}x`, "'a'", "\x00",
	} {
		for _, value := range []byte("\x00 \"\\:,{}0aAnZ\xff") {
			f.Add([]byte(data), i*17, value)
			f.Add([]byte(data), -1-i, value)
		}
	}
	sample, err := encode(name, []byte(`{"a":1}`))
	if err != nil {
		f.Fatal(err)
	}
	for position := range sample {
		f.Add([]byte(`{"a":1}`), position, sample[position]^0x20) // the other case
		f.Add([]byte(`{"a":1}`), position, sample[position]^1)
	}
	f.Fuzz(func(t *testing.T, data []byte, position int, value byte) {
		raw, err := encode(name, data)
		if err != nil {
			if json.Valid(data) {
				t.Fatalf("encode(%q) = %v", data, err)
			}
			return
		}
		var want bytes.Buffer
		if err := json.Compact(&want, data); err != nil {
			t.Fatalf("encode accepts %q: %v", data, err)
		}
		if got := decode(name, raw); got.Damage != nil || !bytes.Equal(got.Data, want.Bytes()) {
			t.Fatalf("decode(encode(%q)) = %q, %v", data, got.Data, got.Damage)
		}
		changed := bytes.Clone(raw)
		changed[uint(position)%uint(len(raw))] = value
		switch got := decode(name, changed); {
		case got.Damage != nil && got.Data == nil:
		case got.Damage != nil:
			t.Fatalf("decode(%q) = %q and damage %v", changed, got.Data, got.Damage)
		case !bytes.Equal(got.Data, want.Bytes()):
			t.Fatalf("decode(%q) = %q, want %q or damage", changed, got.Data, want.Bytes())
		}
	})
}

var encode, decode = (*Secrets)(nil).encode, (*Secrets)(nil).decode // without a secret
