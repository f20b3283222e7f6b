package messages_test

import (
	"strings"
	"testing"

	m "github.com/nasfleet/nasfleet/messages"
)

func TestZoneSettings(t *testing.T) {
	for name, tt := range map[string]struct {
		s    m.ZoneSettings
		code m.Code
	}{
		"defaults":                {m.ZoneSettings{Zone: "z1"}, ""},
		"everything":              {m.ZoneSettings{Zone: "z1", Compression: true, Encryption: true, Passphrase: jobID, BandwidthLimit: 9, IntegrityCheck: true, Recovery: backupID}, ""},
		"passphrase alone":        {m.ZoneSettings{Zone: "z1", Passphrase: jobID}, ""},
		"no zone":                 {m.ZoneSettings{}, m.CodeInvalidMessage},
		"two tokens":              {m.ZoneSettings{Zone: "z1.x"}, m.CodeInvalidMessage},
		"encryption without":      {m.ZoneSettings{Zone: "z1", Encryption: true}, m.CodePassphraseMissing},
		"a passphrase as its own": {m.ZoneSettings{Zone: "z1", Passphrase: "hunter2"}, m.CodeInvalidDetail},
		"recovery as its own":     {m.ZoneSettings{Zone: "z1", Recovery: "hunter2"}, m.CodeInvalidDetail},
		"below no limit":          {m.ZoneSettings{Zone: "z1", BandwidthLimit: -1}, m.CodeInvalidDetail},
	} {
		if err := tt.s.Validate(); m.CodeOf(err) != tt.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The passphrase of a chain is sealed, and has a name only where there is one; a backup is not made of itself.
func TestConsolidateIsChecked(t *testing.T) {
	ref := m.ConsolidateBackup{Header: header(m.TypeConsolidate), Backup: backupRef()}
	for name, tt := range map[string]struct {
		change func(*m.ConsolidateBackup)
		want   m.Code
	}{
		"as it is":                   {func(*m.ConsolidateBackup) {}, ""},
		"a chain in the clear":       {func(c *m.ConsolidateBackup) { c.Details = m.Details{Encryption: true, Passphrase: sealed} }, ""},
		"a chain's name":             {func(c *m.ConsolidateBackup) { c.ChainPassphrase, c.ChainRevision = sealed, jobID }, ""},
		"a name of nothing":          {func(c *m.ConsolidateBackup) { c.ChainRevision = jobID }, m.CodeInvalidDetail},
		"a name that is none":        {func(c *m.ConsolidateBackup) { c.ChainPassphrase, c.ChainRevision = sealed, "hunter2" }, m.CodeInvalidDetail},
		"in the clear":               {func(c *m.ConsolidateBackup) { c.ChainPassphrase = "hunter2" }, m.CodePassphraseUnsealed},
		"encryption with nothing":    {func(c *m.ConsolidateBackup) { c.Details.Encryption = true }, m.CodePassphraseMissing},
		"the chain's is not the new": {func(c *m.ConsolidateBackup) { c.ChainPassphrase, c.Details.Encryption = sealed, true }, m.CodePassphraseMissing},
		"of itself":                  {func(c *m.ConsolidateBackup) { c.Backup.ID = c.JobID }, m.CodeInvalidMessage},
	} {
		c := ref
		tt.change(&c)
		err := c.Validate()
		if m.CodeOf(err) != tt.want && (err != nil || tt.want != "") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error holds a passphrase: %v", name, err)
		}
	}
}

// A rekey without one of its two passphrases, or with one in the clear, is refused.
func TestRekeyPassphrases(t *testing.T) {
	ref := m.RekeyBackup{Header: header(m.TypeRekey), Backup: backupRef(), OldPassphrase: sealed, Details: m.Details{Passphrase: sealed}}
	for name, tt := range map[string]struct {
		change func(*m.RekeyBackup)
		code   m.Code
	}{
		"as it is":         {func(*m.RekeyBackup) {}, ""},
		"no old one":       {func(c *m.RekeyBackup) { c.OldPassphrase = "" }, m.CodePassphraseMissing},
		"no new one":       {func(c *m.RekeyBackup) { c.Details.Passphrase = "" }, m.CodePassphraseMissing},
		"old in the clear": {func(c *m.RekeyBackup) { c.OldPassphrase = "hunter2" }, m.CodePassphraseUnsealed},
		"new in the clear": {func(c *m.RekeyBackup) { c.Details.Passphrase = "hunter2" }, m.CodePassphraseUnsealed},
		"old revision":     {func(c *m.RekeyBackup) { c.OldRevision = "hunter2" }, m.CodeInvalidDetail},
		"another detail":   {func(c *m.RekeyBackup) { c.Details.Compression = true }, m.CodeInvalidDetail},
	} {
		c := ref
		tt.change(&c)
		if err := c.Validate(); m.CodeOf(err) != tt.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}
