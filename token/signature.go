package token

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
)

// verify checks an RSASSA-PKCS1-v1_5 signature with SHA-256 (RFC 8017 section
// 8.2.2). Its errors wrap ErrSignature.
func (k *PublicKey) verify(signed string, signature []byte) error {
	if len(signature) != k.rsa.Size() {
		return errSignatureLength
	}
	digest := sha256.Sum256([]byte(signed))
	if rsa.VerifyPKCS1v15(k.rsa, crypto.SHA256, digest[:], signature) != nil {
		return ErrSignature
	}
	return nil
}
