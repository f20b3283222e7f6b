package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
)

// Setting is one setting of a zone.
type Setting struct {
	Key string `json:"key"`
	// Type is bool, int or secret.
	Type    string `json:"type"`
	Default string `json:"default"`
	// Value is what is in force; of the secret, the revision of the passphrase that is kept.
	Value       string `json:"value"`
	Description string `json:"description"`
}

// Zone is a zone with its settings.
type Zone struct {
	Zone     string    `json:"zone"`
	Settings []Setting `json:"settings"`
	// Recovery is the revision of the zone's recovery passphrase; "" where it has none.
	Recovery string `json:"recovery_passphrase,omitempty"`
}

// describe lists the settings of a zone with their values, in the order of the design.
func describe(s messages.ZoneSettings) Zone {
	return Zone{Zone: s.Zone, Recovery: s.Recovery, Settings: []Setting{
		{messages.SettingCompression, "bool", "false", strconv.FormatBool(s.Compression), "compress backups"},
		{messages.SettingEncryption, "bool", "false", strconv.FormatBool(s.Encryption), "encrypt backups (LUKS); needs a passphrase"},
		{messages.SettingPassphrase, "secret", "", s.Passphrase, "passphrase of encrypted backups; its value is the name of its revision"},
		{messages.SettingBandwidthLimit, "int", "0", strconv.Itoa(s.BandwidthLimit), "limit of each job in MiB/s, all its disks together; 0 is none"},
		{messages.SettingIntegrityCheck, "bool", "false", strconv.FormatBool(s.IntegrityCheck), "read each backup back and compare it with its digests"},
	}}
}

// SettingKeys lists the names of the settings.
func SettingKeys() []string {
	var keys []string
	for _, s := range describe(messages.ZoneSettings{}).Settings {
		keys = append(keys, s.Key)
	}
	return keys
}

// assign sets one of the settings that are no secret.
func assign(s *messages.ZoneSettings, key, value string) error {
	flag := func(to *bool) error {
		if value != "true" && value != "false" {
			return usagef("%s %q is neither true nor false", key, value)
		}
		*to = value == "true"
		return nil
	}
	switch key {
	case messages.SettingCompression:
		return flag(&s.Compression)
	case messages.SettingEncryption:
		return flag(&s.Encryption)
	case messages.SettingIntegrityCheck:
		return flag(&s.IntegrityCheck)
	case messages.SettingBandwidthLimit:
		d, err := messages.ParseDetails(map[string]string{messages.DetailBandwidthLimit: value})
		if err != nil {
			return usagef("%s %q is not an integer from 0 to 1073741824 (MiB/s)", key, value)
		}
		s.BandwidthLimit = d.BandwidthLimit
		return nil
	case messages.SettingPassphrase:
		// The value is not quoted.
		return &Error{
			Class: Usage, Err: fmt.Errorf("%s is not set on the command line, where others can read it", key),
			Hint: "Use publisher zone passphrase rotate --passphrase-file FILE; think of the one that was typed as known to others.",
		}
	}
	return unknownSetting(key)
}

func unknownSetting(key string) error {
	return &Error{
		Class: Usage, Err: fmt.Errorf("there is no setting %q", key),
		Hint: "The settings are " + strings.Join(SettingKeys(), ", ") + ".",
	}
}

// Zones lists the zones that have settings or commands, by name. With those whose settings can be read comes an error
// that names the others.
func (m *Manager) Zones(ctx context.Context) ([]Zone, error) {
	set, unreadable := m.bus.AllZoneSettings(ctx)
	if unreadable != nil {
		unreadable = fmt.Errorf("settings of the zones: %w", unreadable)
	}
	if unreadable != nil && !errors.Is(unreadable, bus.ErrUnreadable) {
		return nil, unreadable
	}
	names, err := m.bus.Zones(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the zones: %w", err)
	}
	zones := make([]Zone, 0, len(set)+len(names))
	for _, s := range set {
		zones = append(zones, describe(s))
	}
	for _, name := range names {
		if slices.ContainsFunc(set, func(s messages.ZoneSettings) bool { return s.Zone == name }) {
			continue
		}
		if unreadable != nil {
			// One of those that cannot be read has not the defaults.
			s, revision, err := m.bus.ZoneSettings(ctx, name)
			if err != nil || revision > 0 {
				continue
			}
			zones = append(zones, describe(s))
			continue
		}
		zones = append(zones, describe(messages.ZoneSettings{Zone: name}))
	}
	slices.SortFunc(zones, func(a, b Zone) int { return strings.Compare(a.Zone, b.Zone) })
	return zones, unreadable
}

// Zone returns a zone with its settings; the defaults where nothing was ever set.
func (m *Manager) Zone(ctx context.Context, zone string) (Zone, error) {
	if err := messages.CheckLabel("zone", zone); err != nil {
		return Zone{}, refused(err)
	}
	s, _, err := m.bus.ZoneSettings(ctx, zone)
	if err != nil {
		return Zone{}, fmt.Errorf("settings of zone %s: %w", zone, err)
	}
	return describe(s), nil
}

// Get returns one setting of a zone.
func (m *Manager) Get(ctx context.Context, zone, key string) (Setting, error) {
	z, err := m.Zone(ctx, zone)
	if err != nil {
		return Setting{}, err
	}
	i := slices.IndexFunc(z.Settings, func(s Setting) bool { return s.Key == key })
	if i < 0 {
		return Setting{}, unknownSetting(key)
	}
	return z.Settings[i], nil
}

// Set changes settings of a zone, all of them or none. Each is KEY=VALUE, and no key comes twice.
func (m *Manager) Set(ctx context.Context, zone string, assignments []string) error {
	seen := map[string]bool{}
	return m.change(ctx, zone, func(s *messages.ZoneSettings) error {
		clear(seen)
		for _, a := range assignments {
			key, value, ok := strings.Cut(a, "=")
			switch {
			case !ok && slices.Contains(SettingKeys(), key):
				return usagef("%s has no value: KEY=VALUE is needed", key)
			case !ok:
				return usagef("a setting has the form KEY=VALUE") // it may be a passphrase
			case seen[key]:
				return usagef("%s is given twice", key)
			}
			seen[key] = true
			if err := assign(s, key, value); err != nil {
				return err
			}
		}
		return nil
	})
}

// Unset gives settings of a zone their defaults. Without its passphrase a zone still keeps all that it
// had, for the backups that were taken with them.
func (m *Manager) Unset(ctx context.Context, zone string, keys []string) error {
	defaults := describe(messages.ZoneSettings{}).Settings
	return m.change(ctx, zone, func(s *messages.ZoneSettings) error {
		for _, key := range keys {
			i := slices.IndexFunc(defaults, func(d Setting) bool { return d.Key == key })
			switch {
			case i < 0:
				return unknownSetting(key)
			case key == messages.SettingPassphrase:
				s.Passphrase = ""
			default:
				if err := assign(s, key, defaults[i].Default); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// changeTries bounds how often a change is made again because somebody else made one meanwhile.
const changeTries = 5

// change edits the settings of a zone. Encryption without a passphrase is refused here.
func (m *Manager) change(ctx context.Context, zone string, edit func(*messages.ZoneSettings) error) error {
	if err := messages.CheckLabel("zone", zone); err != nil {
		return refused(err)
	}
	if err := m.bus.EnsureZoneBucket(ctx); err != nil {
		return err
	}
	for try := 1; ; try++ {
		s, revision, err := m.bus.ZoneSettings(ctx, zone)
		if err != nil {
			return fmt.Errorf("settings of zone %s: %w", zone, err)
		}
		if err := edit(&s); err != nil {
			return err
		}
		if s.Encryption && s.Passphrase == "" {
			return &Error{
				Class: Usage, Err: messages.Errorf(messages.CodePassphraseMissing, "zone %s would encrypt its backups and has no passphrase", zone),
				Hint: "Keep one first: publisher zone passphrase rotate --zone " + zone + " --passphrase-file FILE.",
			}
		}
		if err := s.Validate(); err != nil {
			return refused(err)
		}
		err = m.bus.PutZoneSettings(ctx, s, revision)
		if !errors.Is(err, bus.ErrConflict) || try == changeTries {
			return err
		}
	}
}
