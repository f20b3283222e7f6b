package fleet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// PassphraseInfo is what can be told of a passphrase that is kept.
type PassphraseInfo struct {
	Zone      string    `json:"zone"`
	Revision  string    `json:"revision"`
	Recovery  bool      `json:"recovery"`
	CreatedAt time.Time `json:"created_at"`
	// Current says that new backups get it.
	Current bool `json:"current"`
	// Opens says that the publisher's key opens it.
	Opens bool `json:"opens"`
	// KeptBy is the public half of the key that does.
	KeptBy string `json:"kept_by"`
	// Backups counts those in the catalog that name it.
	Backups int `json:"backups"`
}

// Rotation says how a passphrase is kept.
type Rotation struct {
	// Recovery makes it the zone's recovery passphrase.
	Recovery bool
	// NewKey keeps it with the publisher's present key, made if there is none, although the zone's passphrases are kept
	// with another: that one is lost.
	NewKey bool
}

// RotatePassphrase keeps a passphrase for a zone as its current one, or as its recovery passphrase, and
// returns its revision. Those before it stay.
func (m *Manager) RotatePassphrase(ctx context.Context, zone string, p *secret.Passphrase, r Rotation) (string, error) {
	recovery := r.Recovery
	if err := messages.CheckLabel("zone", zone); err != nil {
		return "", refused(err)
	}
	if err := m.bus.EnsureZoneBucket(ctx); err != nil {
		return "", err
	}
	if !r.NewKey {
		if err := m.checkSealKey(ctx, zone); err != nil {
			return "", err
		}
	}
	k := messages.KeptPassphrase{
		Zone: zone, Revision: ulid.Make().String(), Recovery: recovery, CreatedAt: time.Now().UTC().Truncate(time.Second),
	}
	// The passphrase first: whatever names it must find it.
	if err := m.keep(ctx, k, p, 0); err != nil {
		return "", err
	}
	return k.Revision, m.change(ctx, zone, func(s *messages.ZoneSettings) error {
		if recovery {
			s.Recovery = k.Revision
		} else {
			s.Passphrase = k.Revision
		}
		return nil
	})
}

// DropRecovery takes the recovery passphrase from the backups that a zone takes from now on.
func (m *Manager) DropRecovery(ctx context.Context, zone string) error {
	return m.change(ctx, zone, func(s *messages.ZoneSettings) error {
		s.Recovery = ""
		return nil
	})
}

// RestorePassphrase puts a passphrase that somebody knows back under its revision, kept with the
// publisher's present key: the way back when the key was lost. That it is the right one only shows when
// a backup is opened with it.
func (m *Manager) RestorePassphrase(ctx context.Context, zone, revision string, p *secret.Passphrase) error {
	if err := errors.Join(messages.CheckLabel("zone", zone), messages.CheckID("revision", revision)); err != nil {
		return refused(err)
	}
	k, last, err := m.bus.KeptPassphrase(ctx, zone, revision)
	if errors.Is(err, bus.ErrNotFound) {
		// The bucket itself was lost: the manifests of backups still name it.
		if err := m.bus.EnsureZoneBucket(ctx); err != nil {
			return err
		}
		id, err := ulid.ParseStrict(revision)
		if err != nil {
			return usagef("revision %s: %w", revision, err)
		}
		if err := m.checkSealKey(ctx, ""); err != nil {
			return err
		}
		k = messages.KeptPassphrase{Zone: zone, Revision: revision, CreatedAt: ulid.Time(id.Time()).UTC()}
		return m.keep(ctx, k, p, 0)
	}
	if err != nil {
		return fmt.Errorf("passphrase %s of zone %s: %w", revision, zone, err)
	}
	if err := m.checkSealKey(ctx, ""); err != nil {
		return err
	}
	key, err := m.sealKey()
	if err != nil {
		return err
	}
	if kept, err := key.Recall(zone, revision, k.Kept); err == nil {
		kept.Wipe()
		return &Error{
			Class: Usage, Err: fmt.Errorf("passphrase %s of zone %s is there, and opens with this key", revision, zone),
			Hint: "A new passphrase gets a revision of its own: publisher zone passphrase rotate.",
		}
	}
	return m.keep(ctx, k, p, last)
}

// checkSealKey refuses to keep a passphrase with another key than those before it: somebody has pointed --keys to the
// wrong folder, and whoever uses the right one could not read what he has kept. It looks at the zone's newest passphrase; a
// key that is not there is compared with those of all zones, and where zone is "" that is all.
func (m *Manager) checkSealKey(ctx context.Context, zone string) error {
	key, err := secret.LoadSealKey(m.keys)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return m.noKey(err)
	}
	var public string
	zones := []string{zone}
	if err == nil {
		if zone == "" {
			return nil
		}
		if public, err = key.Public(); err != nil {
			return err
		}
	} else {
		set, err := m.bus.AllZoneSettings(ctx)
		if err != nil {
			return fmt.Errorf("settings of the zones: %w", err)
		}
		for _, s := range set {
			zones = append(zones, s.Zone)
		}
	}
	for _, z := range zones {
		if z == "" {
			continue
		}
		kept, err := m.bus.KeptPassphrases(ctx, z)
		if err != nil {
			return fmt.Errorf("passphrases of zone %s: %w", z, err)
		}
		if len(kept) > 0 && kept[len(kept)-1].KeptBy != public {
			return &Error{
				Class: Usage, Err: fmt.Errorf("the passphrases of zone %s are kept with the key %s, which is not that in %s", z, kept[len(kept)-1].KeptBy, m.keys.Path(secret.SealKeyFile)),
				Hint: "Point --keys to the folder with that key. If it is lost, rotate with --new-key: docs/operations.md says what that means for old backups.",
			}
		}
	}
	return nil
}

// keep stores a passphrase as the publisher's key seals it.
func (m *Manager) keep(ctx context.Context, k messages.KeptPassphrase, p *secret.Passphrase, last uint64) error {
	key, err := m.sealKey()
	if err != nil {
		return err
	}
	if k.KeptBy, err = key.Public(); err != nil {
		return err
	}
	if k.Kept, err = key.Keep(k.Zone, k.Revision, p); err != nil {
		return err
	}
	return m.bus.KeepPassphrase(ctx, k, last)
}

// ZonePassphrases lists what passphrases a zone keeps, oldest first. None of them is in it.
func (m *Manager) ZonePassphrases(ctx context.Context, zone string) ([]PassphraseInfo, error) {
	if err := messages.CheckLabel("zone", zone); err != nil {
		return nil, refused(err)
	}
	s, _, err := m.bus.ZoneSettings(ctx, zone)
	if err != nil {
		return nil, fmt.Errorf("settings of zone %s: %w", zone, err)
	}
	kept, err := m.bus.KeptPassphrases(ctx, zone)
	if err != nil {
		return nil, fmt.Errorf("passphrases of zone %s: %w", zone, err)
	}
	used, err := m.usedRevisions(ctx, zone)
	if err != nil {
		return nil, err
	}
	list := make([]PassphraseInfo, len(kept))
	for i, k := range kept {
		_, err := m.kept(ctx, zone, k.Revision)
		list[i] = PassphraseInfo{
			Zone: zone, Revision: k.Revision, Recovery: k.Recovery, CreatedAt: k.CreatedAt, KeptBy: k.KeptBy,
			Current: k.Revision == s.Passphrase || k.Revision == s.Recovery, Opens: err == nil, Backups: used[k.Revision],
		}
	}
	return list, nil
}

// usedRevisions counts the backups of a zone in the catalog by the revisions they name.
func (m *Manager) usedRevisions(ctx context.Context, zone string) (map[string]int, error) {
	used := map[string]int{}
	backups, err := m.bus.Backups(ctx, bus.CatalogFilter{Zone: zone})
	if err != nil && !errors.Is(err, bus.ErrNoStream) {
		return nil, fmt.Errorf("read the catalog: %w", err)
	}
	for _, b := range backups {
		for _, revision := range []string{b.Revision, b.RecoveryRevision} {
			if revision != "" {
				used[revision]++
			}
		}
	}
	return used, nil
}
