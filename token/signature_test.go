package token

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"math/big"
	"testing"
)

// sha256Prefix is the DER of a DigestInfo for SHA-256 up to the digest (RFC
// 8017 section 9.2, note 1).
var sha256Prefix = []byte{
	0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20,
}

// power makes the signature whose encoded message is as given, which takes the
// private key.
func power(key *rsa.PrivateKey, message []byte) []byte {
	s := new(big.Int).Exp(new(big.Int).SetBytes(message), key.D, key.N)
	return s.FillBytes(make([]byte, key.Size()))
}

// A signature is good if its encoded message is the one that RFC 8017 defines,
// byte by byte. Verifiers that parsed it instead took messages with garbage in
// them (Bleichenbacher, 2006), which for some keys need no private half to make.
func TestEncodedMessageHasOneForm(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public, err := NewPublicKey("k", &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	const signed = "header.payload"
	digest := sha256.Sum256([]byte(signed))
	size := key.Size()
	// with ends a message in a tail and fills it up with 0xff in front.
	with := func(tail ...[]byte) []byte {
		end := bytes.Join(tail, nil)
		start := append([]byte{0, 1}, bytes.Repeat([]byte{0xff}, size-3-len(end))...)
		return append(append(start, 0), end...)
	}
	message := func() []byte { return with(sha256Prefix, digest[:]) }
	other := sha256.Sum256([]byte("other"))
	sha1Prefix := []byte{0x30, 0x21, 0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x1a, 0x05, 0x00, 0x04, 0x14}
	withoutNull := append([]byte{0x30, 0x2f}, append([]byte{0x30, 0x0b}, sha256Prefix[4:15]...)...)
	withoutNull = append(withoutNull, 0x04, 0x20)
	longForm := append([]byte{0x30, 0x81, 0x31}, sha256Prefix[2:]...)
	garbage := func(n int) []byte { return bytes.Repeat([]byte{0x42}, n) }
	changed := func(change func([]byte)) []byte {
		m := message()
		change(m)
		return m
	}
	for name, m := range map[string][]byte{
		"block type 0":              changed(func(m []byte) { m[1] = 0 }),
		"block type 2":              changed(func(m []byte) { m[1] = 2 }),
		"first byte not zero":       changed(func(m []byte) { m[0] = 0; m[1] = 0x11 }),
		"padding that is not ff":    changed(func(m []byte) { m[10] = 0xfe }),
		"padding that ends early":   changed(func(m []byte) { m[10] = 0 }),
		"no end of the padding":     changed(func(m []byte) { m[size-len(sha256Prefix)-33] = 0xff }),
		"garbage after the digest":  with(sha256Prefix, digest[:], garbage(64)),
		"one byte after the digest": with(sha256Prefix, digest[:], []byte{0}),
		"garbage in the parameters": with(append(append([]byte{0x30, 0x39}, sha256Prefix[2:17]...), append(garbage(8), 0x04, 0x20)...), digest[:]),
		"no NULL parameters":        with(withoutNull, digest[:]),
		"length in the long form":   with(longForm, digest[:]),
		"SHA-1 of another text":     with(sha1Prefix, digest[:20]),
		"the bare digest":           with(digest[:]),
		"another digest":            with(sha256Prefix, other[:]),
	} {
		t.Run(name, func(t *testing.T) {
			signature := power(key, m)
			if err := public.verify(signed, signature); !errors.Is(err, ErrSignature) {
				t.Errorf("verify = %v, want %v", err, ErrSignature)
			}
		})
	}
	if err := public.verify(signed, power(key, message())); err != nil {
		t.Errorf("the one form is refused: %v", err)
	}
}

// J32: numbers that are no signatures, and the same number written otherwise.
func TestSignatureNumbers(t *testing.T) {
	for _, bits := range []int{2048, 2049, 3072, 4096} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		public, err := NewPublicKey("k", &key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		const signed = "header.payload"
		digest := sha256.Sum256([]byte(signed))
		good, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		if err := public.verify(signed, good); err != nil {
			t.Errorf("%d bits: a good signature is refused: %v", bits, err)
		}
		size := key.Size()
		number := func(n *big.Int) []byte { return n.Bytes() }
		padded := func(n int64) []byte { return big.NewInt(n).FillBytes(make([]byte, size)) }
		less := new(big.Int).Sub(key.N, big.NewInt(1))
		negative := new(big.Int).Sub(key.N, new(big.Int).SetBytes(good))
		for name, signature := range map[string][]byte{
			"none":           nil,
			"0":              padded(0),
			"1":              padded(1),
			"n-1":            less.FillBytes(make([]byte, size)),
			"n":              key.N.FillBytes(make([]byte, size)),
			"n-s":            negative.FillBytes(make([]byte, size)),
			"s+n":            number(new(big.Int).Add(new(big.Int).SetBytes(good), key.N)),
			"a byte short":   good[1:],
			"a leading zero": append([]byte{0}, good...),
			"all ones":       bytes.Repeat([]byte{0xff}, size),
		} {
			if err := public.verify(signed, signature); !errors.Is(err, ErrSignature) {
				t.Errorf("%d bits, %s: verify = %v, want %v", bits, name, err, ErrSignature)
			}
		}
	}
}
