package messages

import "time"

// The settings of a zone, as they are called; each is off by default.
const (
	SettingCompression    = "nas.backup.compression.enabled"
	SettingEncryption     = "nas.backup.encryption.enabled"
	SettingPassphrase     = "nas.backup.encryption.passphrase"
	SettingBandwidthLimit = "nas.backup.bandwidth.limit.mbps"
	SettingIntegrityCheck = "nas.backup.integrity.check"
)

// ZoneSettings are what the backups of a zone get unless their command says otherwise, in
// ZoneBucket. The publisher copies them into the details of a command; hosts never see them.
type ZoneSettings struct {
	Zone string `json:"zone"`
	// Compression is nas.backup.compression.enabled.
	Compression bool `json:"nas.backup.compression.enabled"`
	// Encryption is nas.backup.encryption.enabled. It needs a Passphrase.
	Encryption bool `json:"nas.backup.encryption.enabled"`
	// Passphrase is nas.backup.encryption.passphrase: the revision (a ULID) under which it is kept,
	// never the passphrase; "" is none.
	Passphrase string `json:"nas.backup.encryption.passphrase"`
	// BandwidthLimit is nas.backup.bandwidth.limit.mbps, in MiB/s; 0 is no limit.
	BandwidthLimit int `json:"nas.backup.bandwidth.limit.mbps"`
	// IntegrityCheck is nas.backup.integrity.check.
	IntegrityCheck bool `json:"nas.backup.integrity.check"`
	// Recovery is the revision of the passphrase that opens the zone's backups as well; "" is none.
	Recovery string `json:"recovery_passphrase,omitempty"`
}

// Validate refuses settings that no backup can be taken with, or that name no zone.
func (s ZoneSettings) Validate() error {
	if err := CheckLabel("zone", s.Zone); err != nil {
		return err
	}
	for key, revision := range map[string]string{SettingPassphrase: s.Passphrase, "recovery_passphrase": s.Recovery} {
		if err := checkRevision(key, revision); err != nil {
			return err
		}
	}
	d := Details{Compression: s.Compression, BandwidthLimit: s.BandwidthLimit, IntegrityCheck: s.IntegrityCheck}
	if err := d.check(); err != nil {
		return err
	}
	if s.Encryption && s.Passphrase == "" {
		return Errorf(CodePassphraseMissing, "%s is true and there is no %s", SettingEncryption, SettingPassphrase)
	}
	return nil
}

// KeptPassphrase is one passphrase of a zone, in ZoneBucket. It is never replaced: another
// passphrase gets another revision, and backups taken with this one name it.
type KeptPassphrase struct {
	Zone string `json:"zone"`
	// Revision is a ULID that tells when the passphrase was set and nothing else about it.
	Revision string `json:"revision"`
	// Recovery says that it is a recovery passphrase.
	Recovery  bool      `json:"recovery,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	// KeptBy is the public half (X…) of the publisher's key that opens it.
	KeptBy string `json:"kept_by"`
	// Kept is the passphrase, sealed with that key.
	Kept string `json:"kept"`
}
