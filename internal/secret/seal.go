package secret

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/nats-io/nkeys"

	"github.com/nasfleet/nasfleet/messages"
)

// Key is a host's curve key (an nkeys xkey, Curve25519). Passphrases are sealed for its public
// half; only the host can open them.
type Key struct{ kp nkeys.KeyPair }

// NewKey makes a key.
func NewKey() (*Key, error) {
	kp, err := nkeys.CreateCurveKeys()
	if err != nil {
		return nil, fmt.Errorf("make a curve key: %w", err)
	}
	return &Key{kp}, nil
}

// LoadOrCreateKey reads the key kept at path, or makes one and keeps it there (mode 0600).
func LoadOrCreateKey(path string) (*Key, error) {
	seed, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return createKey(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the host's key: %w", err)
	}
	defer clear(seed)
	kp, err := nkeys.FromCurveSeed(seed)
	if err != nil {
		return nil, fmt.Errorf("the host's key in %s is not a curve seed: %w", path, err)
	}
	return &Key{kp}, nil
}

// createKey makes a key and keeps it. Of two workers that start at once both use the same one.
func createKey(path string) (*Key, error) {
	k, err := NewKey()
	if err != nil {
		return nil, err
	}
	seed, err := k.kp.Seed()
	if err != nil {
		return nil, fmt.Errorf("make a curve key: %w", err)
	}
	defer clear(seed)
	if err := keepNew(path, seed); errors.Is(err, fs.ErrExist) {
		return LoadOrCreateKey(path)
	} else if err != nil {
		return nil, fmt.Errorf("the host's key: %w", err)
	}
	return k, nil
}

// Public returns the half that others seal for (X…).
func (k *Key) Public() (string, error) { return k.kp.PublicKey() }

// Derive returns 32 bytes that nobody can tell who has not got the key, others for each label.
func (k *Key) Derive(label string) ([]byte, error) {
	seed, err := k.kp.Seed()
	if err != nil {
		return nil, fmt.Errorf("derive from the host's key: %w", err)
	}
	defer clear(seed)
	return hkdf.Key(sha256.New, seed, nil, "nasfleet "+label, 32)
}

// Seal seals a passphrase for the owner of a public key. The text is
// sealed1.<public key of the one who sealed>.<base64url of the box>; the sender's key is made for
// this one box, so two seals of one passphrase have nothing in common.
func Seal(public string, p *Passphrase) (string, error) {
	if !nkeys.IsValidPublicCurveKey(public) {
		return "", fmt.Errorf("%q is not a public curve key", public)
	}
	sender, err := NewKey()
	if err != nil {
		return "", err
	}
	defer sender.kp.Wipe()
	box, err := sender.kp.Seal(p.Bytes(), public)
	if err != nil {
		return "", fmt.Errorf("seal: %w", err)
	}
	from, err := sender.Public()
	if err != nil {
		return "", fmt.Errorf("seal: %w", err)
	}
	return messages.SealedPrefix + from + "." + base64.RawURLEncoding.EncodeToString(box), nil
}

// Open opens what was sealed for this key. Anything else is CodePassphraseForeign.
func (k *Key) Open(sealed string) (*Passphrase, error) {
	from, box, err := parseSealed(sealed)
	if err != nil {
		return nil, messages.Errorf(messages.CodePassphraseForeign, "the sealed passphrase: %w", err)
	}
	b, err := k.kp.Open(box, from)
	if err != nil {
		return nil, messages.Errorf(messages.CodePassphraseForeign, "the passphrase was sealed for another host or key")
	}
	defer clear(b)
	p, err := NewPassphrase(b)
	if err != nil {
		return nil, messages.Errorf(messages.CodePassphraseForeign, "%w", err)
	}
	return p, nil
}

func parseSealed(s string) (from string, box []byte, err error) {
	rest, ok := strings.CutPrefix(s, messages.SealedPrefix)
	if !ok {
		return "", nil, errors.New("not sealed")
	}
	from, text, ok := strings.Cut(rest, ".")
	if !ok || !nkeys.IsValidPublicCurveKey(from) {
		return "", nil, errors.New("no sender's key")
	}
	if box, err = base64.RawURLEncoding.DecodeString(text); err != nil {
		return "", nil, errors.New("not base64url")
	}
	return from, box, nil
}
