package messages

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
)

// The keys of the details map.
const (
	DetailCompression     = "compression"
	DetailCompressionType = "compression_type"
	DetailEncryption      = "encryption"
	DetailPassphrase      = "encryption_passphrase"
	DetailBandwidthLimit  = "bandwidth_limit"
	DetailIntegrityCheck  = "integrity_check"
	// DetailRevision and the two below it are for passphrases that are kept for a zone.
	DetailRevision         = "encryption_revision"
	DetailRecovery         = "encryption_recovery_passphrase"
	DetailRecoveryRevision = "encryption_recovery_revision"
)

// Compression types, as qcow2 names them.
const (
	Zstd = "zstd"
	Zlib = "zlib"
)

// SealedPrefix begins every sealed passphrase; what does not begin so is plain text and refused.
const SealedPrefix = "sealed1."

// maxBandwidth bounds bandwidth_limit (MiB/s) so that its value in bytes/s cannot overflow.
const maxBandwidth = 1 << 30

// sealedPattern is the alphabet of a sealed passphrase; only the host can tell whether it opens.
var sealedPattern = regexp.MustCompile(`^` + regexp.QuoteMeta(SealedPrefix) + `[A-Za-z0-9._-]+$`)

// Details are the options of a backup, typed. The zero value is the default: all features off.
type Details struct {
	// Compression writes compressed qcow2 clusters.
	Compression bool
	// CompressionType is Zstd (the default, also when empty) or Zlib.
	CompressionType string
	// Encryption puts the qcow2 into a LUKS container. It needs a Passphrase.
	Encryption bool
	// Passphrase is sealed for the host the command goes to; never plain text.
	Passphrase string
	// Revision names Passphrase (a ULID) and tells nothing about it; the manifest keeps it, so that who
	// holds the passphrases finds the right one. "" is a passphrase that nobody keeps.
	Revision string
	// Recovery is a second passphrase that opens the backup as well, sealed like the first; "" is none.
	Recovery string
	// RecoveryRevision names Recovery as Revision names Passphrase.
	RecoveryRevision string
	// BandwidthLimit is in MiB/s for the whole job, all its disks together; 0 is no limit.
	BandwidthLimit int
	// IntegrityCheck reads everything back after the copy and compares it with its digests.
	IntegrityCheck bool
}

// ParseDetails reads the map of strings of a command. A missing key is the default, and so is an
// empty passphrase; an unknown key or a value outside its table is an *Error with the key in it.
func ParseDetails(m map[string]string) (Details, error) {
	var d Details
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if err := d.set(key, m[key]); err != nil {
			return Details{}, err
		}
	}
	return d, d.check()
}

func (d *Details) set(key, value string) (err error) {
	switch key {
	case DetailCompression:
		d.Compression, err = parseBool(key, value)
	case DetailEncryption:
		d.Encryption, err = parseBool(key, value)
	case DetailIntegrityCheck:
		d.IntegrityCheck, err = parseBool(key, value)
	case DetailCompressionType:
		if value != Zstd && value != Zlib {
			return Errorf(CodeInvalidDetail, "%s %q is neither %s nor %s", key, value, Zstd, Zlib)
		}
		d.CompressionType = value
	case DetailPassphrase:
		d.Passphrase = value
		return checkSealed(key, value)
	case DetailRecovery:
		d.Recovery = value
		return checkSealed(key, value)
	case DetailRevision:
		d.Revision = value
		return checkRevision(key, value)
	case DetailRecoveryRevision:
		d.RecoveryRevision = value
		return checkRevision(key, value)
	case DetailBandwidthLimit:
		limit, err := strconv.ParseUint(value, 10, 32) // takes no sign
		if err != nil || limit > maxBandwidth {
			return Errorf(CodeInvalidDetail, "%s %q is not an integer from 0 to %d (MiB/s)", key, value, maxBandwidth)
		}
		d.BandwidthLimit = int(limit)
	default:
		return Errorf(CodeUnknownDetail, "unknown detail %q", key)
	}
	return err
}

// check refuses what ParseDetails would refuse, in details that were not parsed but set by a program.
func (d Details) check() error {
	m := d.Map()
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if err := new(Details).set(key, m[key]); err != nil {
			return err
		}
	}
	if d.Encryption && d.Passphrase == "" {
		return Errorf(CodePassphraseMissing, "%s is true and there is no %s", DetailEncryption, DetailPassphrase)
	}
	if d.Revision != "" && d.Passphrase == "" {
		return Errorf(CodeInvalidDetail, "there is an %s and no %s", DetailRevision, DetailPassphrase)
	}
	if d.Recovery != "" && d.Passphrase == "" {
		return Errorf(CodeInvalidDetail, "there is an %s and no %s", DetailRecovery, DetailPassphrase)
	}
	if d.RecoveryRevision != "" && d.Recovery == "" {
		return Errorf(CodeInvalidDetail, "there is an %s and no %s", DetailRecoveryRevision, DetailRecovery)
	}
	return nil
}

// checkSealed refuses a passphrase in the clear. "" is none.
func checkSealed(key, value string) error {
	if value != "" && !sealedPattern.MatchString(value) {
		// The value is not quoted: it may be somebody's passphrase.
		return Errorf(CodePassphraseUnsealed, "%s is plain text", key)
	}
	return nil
}

// checkRevision refuses what does not name a passphrase; it is not quoted, because it may be one.
func checkRevision(key, value string) error {
	if value != "" && CheckID(key, value) != nil {
		return Errorf(CodeInvalidDetail, "%s is not a ULID", key)
	}
	return nil
}

// Type returns the compression type in force.
func (d Details) Type() string {
	if d.CompressionType == "" {
		return Zstd
	}
	return d.CompressionType
}

// Map returns the details as they travel, the defaults left out.
func (d Details) Map() map[string]string {
	m := map[string]string{}
	if d.Compression {
		m[DetailCompression] = "true"
	}
	if d.CompressionType != "" {
		m[DetailCompressionType] = d.CompressionType
	}
	if d.Encryption {
		m[DetailEncryption] = "true"
	}
	if d.Passphrase != "" {
		m[DetailPassphrase] = d.Passphrase
	}
	if d.Revision != "" {
		m[DetailRevision] = d.Revision
	}
	if d.Recovery != "" {
		m[DetailRecovery] = d.Recovery
	}
	if d.RecoveryRevision != "" {
		m[DetailRecoveryRevision] = d.RecoveryRevision
	}
	if d.BandwidthLimit != 0 {
		m[DetailBandwidthLimit] = strconv.Itoa(d.BandwidthLimit)
	}
	if d.IntegrityCheck {
		m[DetailIntegrityCheck] = "true"
	}
	return m
}

// MarshalJSON writes the map of strings.
func (d Details) MarshalJSON() ([]byte, error) { return json.Marshal(d.Map()) }

// UnmarshalJSON reads the map of strings; null, for the map or for a value, is the default.
func (d *Details) UnmarshalJSON(data []byte) error {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return Errorf(CodeInvalidDetail, "details are not a map of strings")
	}
	m := make(map[string]string, len(raw))
	for _, key := range slices.Sorted(maps.Keys(raw)) {
		if !slices.Contains(detailKeys(), key) {
			return Errorf(CodeUnknownDetail, "unknown detail %q", key)
		}
		var value *string
		if err := json.Unmarshal(raw[key], &value); err != nil {
			return Errorf(CodeInvalidDetail, "%s is not a string", key)
		}
		if value != nil {
			m[key] = *value
		}
	}
	parsed, err := ParseDetails(m)
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}

func detailKeys() []string {
	return []string{
		DetailCompression, DetailCompressionType, DetailEncryption, DetailPassphrase, DetailRevision, DetailRecovery, DetailRecoveryRevision,
		DetailBandwidthLimit, DetailIntegrityCheck,
	}
}

// String tells the details without the passphrases.
func (d Details) String() string { return fmt.Sprint(d.Redacted().Map()) }

// Redacted returns the details for people: the passphrases, sealed as they are, are "(sealed)".
func (d Details) Redacted() Details {
	for _, p := range []*string{&d.Passphrase, &d.Recovery} {
		if *p != "" {
			*p = "(sealed)"
		}
	}
	return d
}

func parseBool(key, value string) (bool, error) {
	switch value {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, Errorf(CodeInvalidDetail, "%s %q is neither true nor false", key, value)
}
