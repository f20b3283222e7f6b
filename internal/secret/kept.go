package secret

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/nats-io/nkeys"
)

// keptPrefix begins a passphrase that a publisher keeps.
const keptPrefix = "kept1."

// ErrForeign is what Recall returns for a text that this key has not kept, or not under that name.
var ErrForeign = errors.New("another key has kept it, or it was changed")

// LoadSealKey reads the publisher's curve key. A folder without one is fs.ErrNotExist.
func LoadSealKey(f Folder) (*Key, error) {
	seed, err := f.Read(SealKeyFile)
	if err != nil {
		return nil, err
	}
	defer clear(seed)
	kp, err := nkeys.FromCurveSeed(bytes.TrimSpace(seed))
	if err != nil {
		return nil, fmt.Errorf("the key in %s is not a curve seed: %w", f.Path(SealKeyFile), err)
	}
	return &Key{kp}, nil
}

// LoadOrCreateSealKey reads the publisher's curve key, or makes one and keeps it.
func LoadOrCreateSealKey(f Folder) (*Key, error) {
	k, err := LoadSealKey(f)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if k, err = NewKey(); err != nil {
		return nil, err
	}
	seed, err := k.kp.Seed()
	if err != nil {
		return nil, fmt.Errorf("make a curve key: %w", err)
	}
	defer clear(seed)
	if err := f.Create(SealKeyFile, seed); errors.Is(err, fs.ErrExist) {
		return LoadSealKey(f)
	} else if err != nil {
		return nil, err
	}
	return k, nil
}

// Keep seals a passphrase of a zone with this key, for this key. Only who has the key can make such a
// text, and it is good for that zone and revision alone: who can write where it lies can neither read
// it, nor put a passphrase of his own or of another zone in its place.
func (k *Key) Keep(zone, revision string, p *Passphrase) (string, error) {
	public, err := k.Public()
	if err != nil {
		return "", fmt.Errorf("keep a passphrase: %w", err)
	}
	labelled := append([]byte(label(zone, revision)), p.Bytes()...)
	defer clear(labelled)
	box, err := k.kp.Seal(labelled, public)
	if err != nil {
		return "", fmt.Errorf("keep a passphrase: %w", err)
	}
	return keptPrefix + base64.RawURLEncoding.EncodeToString(box), nil
}

// Recall opens what Keep made for that zone and revision; anything else is ErrForeign.
func (k *Key) Recall(zone, revision, kept string) (*Passphrase, error) {
	public, err := k.Public()
	if err != nil {
		return nil, fmt.Errorf("recall a passphrase: %w", err)
	}
	text, ok := strings.CutPrefix(kept, keptPrefix)
	box, err := base64.RawURLEncoding.DecodeString(text)
	if !ok || err != nil {
		return nil, ErrForeign
	}
	labelled, err := k.kp.Open(box, public)
	if err != nil {
		return nil, ErrForeign
	}
	defer clear(labelled)
	b, ok := bytes.CutPrefix(labelled, []byte(label(zone, revision)))
	if !ok {
		return nil, ErrForeign
	}
	return NewPassphrase(b)
}

// label cannot run into the passphrase: neither of its parts holds a line break.
func label(zone, revision string) string { return zone + "\n" + revision + "\n" }
