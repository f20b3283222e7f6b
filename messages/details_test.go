package messages_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	m "github.com/nasfleet/nasfleet/messages"
)

const sealed = m.SealedPrefix + "XAAA.b0x-_"

// TestParseDetails holds each row of the table of details: what is taken, and what is refused.
func TestParseDetails(t *testing.T) {
	enc := map[string]string{"encryption": "true", "encryption_passphrase": sealed}
	tests := []struct {
		name string
		in   map[string]string
		want m.Details
		code m.Code // "" when it is taken
		says string // what the refusal has to name
	}{
		{name: "nil", in: nil},
		{name: "empty", in: map[string]string{}},

		{name: "compression on", in: kv("compression", "true"), want: m.Details{Compression: true}},
		{name: "compression off", in: kv("compression", "false")},
		{name: "compression 1", in: kv("compression", "1"), code: m.CodeInvalidDetail, says: `compression "1"`},
		{name: "compression True", in: kv("compression", "True"), code: m.CodeInvalidDetail, says: `compression "True"`},
		{name: "compression empty", in: kv("compression", ""), code: m.CodeInvalidDetail, says: `compression ""`},
		{name: "compression padded", in: kv("compression", " true"), code: m.CodeInvalidDetail, says: "compression"},

		{name: "zstd", in: kv("compression_type", "zstd"), want: m.Details{CompressionType: m.Zstd}},
		{name: "zlib", in: kv("compression_type", "zlib"), want: m.Details{CompressionType: m.Zlib}},
		{name: "lz4", in: kv("compression_type", "lz4"), code: m.CodeInvalidDetail, says: `compression_type "lz4"`},
		{name: "ZSTD", in: kv("compression_type", "ZSTD"), code: m.CodeInvalidDetail, says: "compression_type"},
		{name: "no type", in: kv("compression_type", ""), code: m.CodeInvalidDetail, says: "compression_type"},

		{name: "encrypted", in: enc, want: m.Details{Encryption: true, Passphrase: sealed}},
		{name: "not encrypted", in: kv("encryption", "false")},
		{name: "encryption yes", in: kv("encryption", "yes"), code: m.CodeInvalidDetail, says: `encryption "yes"`},
		{name: "no passphrase", in: kv("encryption", "true"), code: m.CodePassphraseMissing, says: "encryption_passphrase"},
		{name: "empty passphrase", in: map[string]string{"encryption": "true", "encryption_passphrase": ""}, code: m.CodePassphraseMissing, says: "encryption_passphrase"},

		{name: "unused passphrase", in: kv("encryption_passphrase", sealed), want: m.Details{Passphrase: sealed}},
		{name: "unset passphrase", in: kv("encryption_passphrase", "")},
		{name: "nothing sealed", in: kv("encryption_passphrase", m.SealedPrefix), code: m.CodePassphraseUnsealed, says: "encryption_passphrase"},

		{name: "revision", in: map[string]string{"encryption_passphrase": sealed, "encryption_revision": backupID}, want: m.Details{Passphrase: sealed, Revision: backupID}},
		{name: "revision of nothing", in: kv("encryption_revision", backupID), code: m.CodeInvalidDetail, says: "encryption_revision"},
		{name: "revision that tells", in: map[string]string{"encryption_passphrase": sealed, "encryption_revision": "hunter2"}, code: m.CodeInvalidDetail, says: "encryption_revision is not a ULID"},
		{name: "recovery", in: map[string]string{"encryption": "true", "encryption_passphrase": sealed, "encryption_recovery_passphrase": sealed, "encryption_recovery_revision": jobID},
			want: m.Details{Encryption: true, Passphrase: sealed, Recovery: sealed, RecoveryRevision: jobID}},
		{name: "recovery in the clear", in: map[string]string{"encryption_passphrase": sealed, "encryption_recovery_passphrase": "hunter2"}, code: m.CodePassphraseUnsealed, says: "encryption_recovery_passphrase"},
		{name: "recovery alone", in: kv("encryption_recovery_passphrase", sealed), code: m.CodeInvalidDetail, says: "encryption_recovery_passphrase"},
		{name: "recovery revision alone", in: map[string]string{"encryption_passphrase": sealed, "encryption_recovery_revision": jobID}, code: m.CodeInvalidDetail, says: "encryption_recovery_revision"},

		{name: "limit", in: kv("bandwidth_limit", "250"), want: m.Details{BandwidthLimit: 250}},
		{name: "no limit", in: kv("bandwidth_limit", "0")},
		{name: "highest limit", in: kv("bandwidth_limit", "1073741824"), want: m.Details{BandwidthLimit: 1 << 30}},
		{name: "limit too high", in: kv("bandwidth_limit", "1073741825"), code: m.CodeInvalidDetail, says: "bandwidth_limit"},
		{name: "limit of 2^32+1", in: kv("bandwidth_limit", "4294967297"), code: m.CodeInvalidDetail, says: "bandwidth_limit"},
		{name: "limit of 2^64+1", in: kv("bandwidth_limit", "18446744073709551617"), code: m.CodeInvalidDetail, says: "bandwidth_limit"},
		{name: "negative limit", in: kv("bandwidth_limit", "-1"), code: m.CodeInvalidDetail, says: `bandwidth_limit "-1"`},
		{name: "minus zero", in: kv("bandwidth_limit", "-0"), code: m.CodeInvalidDetail, says: "bandwidth_limit"},
		{name: "signed limit", in: kv("bandwidth_limit", "+5"), code: m.CodeInvalidDetail, says: "bandwidth_limit"},
		{name: "limit with unit", in: kv("bandwidth_limit", "100M"), code: m.CodeInvalidDetail, says: `bandwidth_limit "100M"`},
		{name: "limit of 1.5", in: kv("bandwidth_limit", "1.5"), code: m.CodeInvalidDetail, says: "bandwidth_limit"},
		{name: "hex limit", in: kv("bandwidth_limit", "0x10"), code: m.CodeInvalidDetail, says: "bandwidth_limit"},
		{name: "empty limit", in: kv("bandwidth_limit", ""), code: m.CodeInvalidDetail, says: "bandwidth_limit"},

		{name: "check on", in: kv("integrity_check", "true"), want: m.Details{IntegrityCheck: true}},
		{name: "check off", in: kv("integrity_check", "false")},
		{name: "check full", in: kv("integrity_check", "full"), code: m.CodeInvalidDetail, says: `integrity_check "full"`},

		{name: "misspelt", in: kv("encrytpion", "true"), code: m.CodeUnknownDetail, says: `"encrytpion"`},
		{name: "other case", in: kv("Encryption", "true"), code: m.CodeUnknownDetail, says: `"Encryption"`},
		{name: "no key", in: kv("", "true"), code: m.CodeUnknownDetail, says: `""`},
		{name: "other form", in: kv("nas.backup.encryption.enabled", "true"), code: m.CodeUnknownDetail, says: "nas.backup.encryption.enabled"},
		{
			name: "everything",
			in: map[string]string{"compression": "true", "compression_type": "zlib", "encryption": "true",
				"encryption_passphrase": sealed, "bandwidth_limit": "7", "integrity_check": "true"},
			want: m.Details{Compression: true, CompressionType: m.Zlib, Encryption: true, Passphrase: sealed, BandwidthLimit: 7, IntegrityCheck: true},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := m.ParseDetails(tt.in)
			refused(t, err, tt.code, tt.says)
			if err == nil && got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}

			// The same through JSON.
			data, _ := json.Marshal(tt.in)
			var viaJSON m.Details
			err = json.Unmarshal(data, &viaJSON)
			refused(t, err, tt.code, tt.says)
			if viaJSON != tt.want {
				t.Errorf("JSON gave %+v, want %+v", viaJSON, tt.want)
			}
		})
	}
}

func TestDetailsJSON(t *testing.T) {
	tests := []struct {
		name, in string
		want     m.Details
		code     m.Code
		says     string
	}{
		{name: "null", in: `null`},
		{name: "null values", in: `{"compression":null,"compression_type":null,"encryption":null,"encryption_passphrase":null,"bandwidth_limit":null,"integrity_check":null}`},
		{name: "null among values", in: `{"compression":"true","bandwidth_limit":null}`, want: m.Details{Compression: true}},
		{name: "null of an unknown key", in: `{"encrytpion":null}`, code: m.CodeUnknownDetail, says: `"encrytpion"`},
		{name: "encryption with a null passphrase", in: `{"encryption":"true","encryption_passphrase":null}`, code: m.CodePassphraseMissing, says: "encryption_passphrase"},
		{name: "number", in: `{"bandwidth_limit":100}`, code: m.CodeInvalidDetail, says: "bandwidth_limit is not a string"},
		{name: "boolean", in: `{"compression":true}`, code: m.CodeInvalidDetail, says: "compression is not a string"},
		{name: "object", in: `{"encryption":{}}`, code: m.CodeInvalidDetail, says: "encryption is not a string"},
		{name: "number of an unknown key", in: `{"encrytpion":1}`, code: m.CodeUnknownDetail, says: `"encrytpion"`},
		{name: "list", in: `[]`, code: m.CodeInvalidDetail, says: "map of strings"},
		{name: "string", in: `"encryption=true"`, code: m.CodeInvalidDetail, says: "map of strings"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got m.Details
			refused(t, json.Unmarshal([]byte(tt.in), &got), tt.code, tt.says)
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// TestPlainPassphrase: a passphrase that is not sealed is refused wherever it comes from, and the
// refusal, which is logged and published, does not repeat it.
func TestPlainPassphrase(t *testing.T) {
	for _, plain := range []string{"Tr0ub4dor", "sealed1. Tr0ub4dor", "sealed1.Tr0ub4dor\n", "sealed2.Tr0ub4dor", " sealed1.Tr0ub4dor", "sealed1.Tr0ub4dor\xff"} {
		t.Run(plain, func(t *testing.T) {
			command := validTake()
			command.Details = m.Details{Encryption: true, Passphrase: plain}
			_, encoding := m.Encode(command)
			_, parsing := m.ParseDetails(map[string]string{"encryption": "true", "encryption_passphrase": plain})
			quoted, _ := json.Marshal(plain)
			_, _, decoding := m.Decode([]byte(edit(t, m.TypeTake, func(o object) {
				o["details"] = object{"encryption": "true", "encryption_passphrase": json.RawMessage(quoted)}
			})))
			restore := &m.RestoreBackup{Header: header(m.TypeRestore), Backup: backupRef(), ToDir: "/r", Details: m.Details{Passphrase: plain}}
			for _, err := range []error{encoding, parsing, decoding, restore.Validate()} {
				refused(t, err, m.CodePassphraseUnsealed, "encryption_passphrase")
				told, _ := json.Marshal(m.FailureOf(err))
				if strings.Contains(string(told), "Tr0ub4dor") {
					t.Errorf("the passphrase is told: %s", told)
				}
			}
		})
	}
}

// TestDetailsPrint: a command in print shows no passphrase, not even a sealed one.
func TestDetailsPrint(t *testing.T) {
	c := validTake()
	c.Details = m.Details{Encryption: true, Passphrase: sealed, BandwidthLimit: 3}
	for _, format := range []string{"%v", "%+v", "%s"} {
		got := fmt.Sprintf(format, c)
		if strings.Contains(got, sealed) || !strings.Contains(got, "encryption_passphrase:(sealed)") || !strings.Contains(got, "bandwidth_limit:3") {
			t.Errorf("%s prints %s", format, got)
		}
	}
}

// TestDetailsSetByAProgram: what a program sets is checked like what is parsed.
func TestDetailsSetByAProgram(t *testing.T) {
	for _, tt := range []struct {
		d    m.Details
		code m.Code
		says string
	}{
		{m.Details{BandwidthLimit: -1}, m.CodeInvalidDetail, "bandwidth_limit"},
		{m.Details{BandwidthLimit: 1<<30 + 1}, m.CodeInvalidDetail, "bandwidth_limit"},
		{m.Details{CompressionType: "lz4"}, m.CodeInvalidDetail, "compression_type"},
		{m.Details{Encryption: true}, m.CodePassphraseMissing, "encryption_passphrase"},
	} {
		c := validTake()
		c.Details = tt.d
		_, err := m.Encode(c)
		refused(t, err, tt.code, tt.says)
	}
}

func TestDetailsMap(t *testing.T) {
	if got := (m.Details{}).Map(); len(got) != 0 {
		t.Errorf("the defaults travel: %v", got)
	}
	all := m.Details{Compression: true, CompressionType: m.Zlib, Encryption: true, Passphrase: sealed, BandwidthLimit: 9, IntegrityCheck: true}
	want := map[string]string{
		m.DetailCompression: "true", m.DetailCompressionType: "zlib", m.DetailEncryption: "true",
		m.DetailPassphrase: sealed, m.DetailBandwidthLimit: "9", m.DetailIntegrityCheck: "true",
	}
	if diff := cmp.Diff(want, all.Map()); diff != "" {
		t.Error(diff)
	}
}

func TestCompressionTypeInForce(t *testing.T) {
	for in, want := range map[string]string{"": m.Zstd, m.Zstd: m.Zstd, m.Zlib: m.Zlib} {
		if got := (m.Details{CompressionType: in}).Type(); got != want {
			t.Errorf("%q is %s, want %s", in, got, want)
		}
	}
}

func kv(key, value string) map[string]string { return map[string]string{key: value} }

// refused checks that err has the code and names what is wrong; with no code, that it is nil.
func refused(t *testing.T, err error, code m.Code, says string) {
	t.Helper()
	if got := m.CodeOf(err); got != code {
		t.Fatalf("code %q, want %q (%v)", got, code, err)
	}
	if err != nil && !strings.Contains(err.Error(), says) {
		t.Errorf("%q does not say %q", err, says)
	}
}
