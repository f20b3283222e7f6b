package secret

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/nasfleet/nasfleet/messages"
)

// iterationsASecond makes a guess at the passphrase by way of a WrappedKey about as dear as one by
// way of the LUKS header, whose key derivation is the same function (PBKDF2 with SHA-256).
const iterationsASecond = 1_000_000

// minIterations is what a guess takes at least, as in a LUKS header (RFC 8018 has the same).
const minIterations = 1000

// maxIterations bounds what a manifest from the NAS can make a reader compute.
const maxIterations = 100_000_000

// keySize is that of a digest key (bytes): BLAKE3's.
const keySize = 32

// WrappedKey is a key that opens with a passphrase; the manifest of an encrypted backup holds
// the key of its digests so.
type WrappedKey struct {
	KDF        string `json:"kdf"`
	Iterations int    `json:"iterations"`
	Salt       []byte `json:"salt"`
	// Box is AES-256-GCM of the key under the derived key, with a zero nonce: each derived key
	// seals one box, because the salt is new each time.
	Box []byte `json:"box"`
}

const kdfName = "pbkdf2-sha256"

// NewDigestKey makes a random key.
func NewDigestKey() []byte {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails
	return key
}

// WrapKey wraps key so that p opens it. A guess at p takes about as long as guess, which is that of
// the backup's LUKS containers.
func WrapKey(p *Passphrase, key []byte, guess time.Duration) (WrappedKey, error) {
	iterations := int(min(max(guess.Seconds()*iterationsASecond, minIterations), maxIterations))
	w := WrappedKey{KDF: kdfName, Iterations: iterations, Salt: make([]byte, 16)}
	_, _ = rand.Read(w.Salt) // never fails
	gcm, err := w.cipher(p)
	if err != nil {
		return WrappedKey{}, err
	}
	w.Box = gcm.Seal(nil, make([]byte, gcm.NonceSize()), key, nil)
	return w, nil
}

// Open returns the key. A passphrase that does not open it is CodeWrongPassphrase; a box no
// passphrase can open is CodeBackupCorrupt.
func (w WrappedKey) Open(p *Passphrase) ([]byte, error) {
	if w.KDF != kdfName || w.Iterations < 1 || w.Iterations > maxIterations || len(w.Salt) > 64 {
		return nil, messages.Errorf(messages.CodeBackupCorrupt, "the digest key is wrapped in an unknown way (%q)", w.KDF)
	}
	gcm, err := w.cipher(p)
	if err != nil {
		return nil, err
	}
	key, err := gcm.Open(nil, make([]byte, gcm.NonceSize()), w.Box, nil)
	if err != nil {
		return nil, messages.Errorf(messages.CodeWrongPassphrase, "the passphrase does not open the backup's digests")
	}
	if len(key) != keySize {
		return nil, messages.Errorf(messages.CodeBackupCorrupt, "the digest key has %d bytes", len(key))
	}
	return key, nil
}

func (w WrappedKey) cipher(p *Passphrase) (cipher.AEAD, error) {
	derived, err := pbkdf2.Key(sha256.New, string(p.Bytes()), w.Salt, w.Iterations, 32)
	if err != nil {
		return nil, fmt.Errorf("derive a key: %w", err)
	}
	defer clear(derived)
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, fmt.Errorf("derive a key: %w", err)
	}
	return cipher.NewGCM(block)
}
