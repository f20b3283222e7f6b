package fleet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// vault holds the passphrases of the zones that were opened, each of them once.
type vault struct {
	mu   sync.Mutex
	key  *secret.Key
	open map[string]*secret.Passphrase // by PassphraseKey
}

func (v *vault) wipe() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, p := range v.open {
		p.Wipe()
	}
	clear(v.open)
}

// kept opens a passphrase that is kept for a zone. It belongs to m; Wipe ends it.
func (m *Manager) kept(ctx context.Context, zone, revision string) (*secret.Passphrase, error) {
	m.book.mu.Lock()
	defer m.book.mu.Unlock()
	name := messages.PassphraseKey(zone, revision)
	if p := m.book.open[name]; p != nil {
		return p, nil
	}
	k, _, err := m.bus.KeptPassphrase(ctx, zone, revision)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, &Error{
			Class: NotFound, Err: fmt.Errorf("zone %s keeps no passphrase %s", zone, revision),
			Hint: "Give the passphrase itself (--passphrase-file FILE), or put it back (publisher zone passphrase restore).",
		}
	}
	if err != nil {
		return nil, fmt.Errorf("passphrase %s of zone %s: %w", revision, zone, err)
	}
	if m.book.key == nil {
		if m.book.key, err = secret.LoadSealKey(m.keys); err != nil {
			return nil, m.noKey(err)
		}
	}
	p, err := m.book.key.Recall(zone, revision, k.Kept)
	if err != nil {
		return nil, m.foreign(k, err)
	}
	if m.book.open == nil {
		m.book.open = map[string]*secret.Passphrase{}
	}
	m.book.open[name] = p
	return p, nil
}

// noKey explains a publisher's key that cannot be read.
func (m *Manager) noKey(err error) error {
	e := &Error{Class: Usage, Err: fmt.Errorf("the key that opens the zones' passphrases: %w", err)}
	if errors.Is(err, fs.ErrNotExist) {
		e.Hint = "Point --keys to the folder with the publisher's keys. docs/operations.md says what to do when it is lost."
	}
	return e
}

// foreign explains a passphrase that the publisher's key does not open.
func (m *Manager) foreign(k messages.KeptPassphrase, err error) error {
	return &Error{
		Class: Failed, Err: fmt.Errorf("passphrase %s of zone %s does not open with the key in %s: %w", k.Revision, k.Zone, m.keys.Path(secret.SealKeyFile), err),
		Hint: "It was kept with the key " + k.KeptBy + ": point --keys to it. docs/operations.md says what to do when it is lost.",
	}
}

// sealKey returns the publisher's key, made if this is the first passphrase that it keeps.
func (m *Manager) sealKey() (*secret.Key, error) {
	m.book.mu.Lock()
	defer m.book.mu.Unlock()
	if m.book.key == nil {
		key, err := secret.LoadOrCreateSealKey(m.keys)
		if err != nil {
			return nil, m.noKey(err)
		}
		m.book.key = key
	}
	return m.book.key, nil
}
