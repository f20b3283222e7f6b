package secret

import (
	"encoding/base64"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

func TestKeep(t *testing.T) {
	f := NewFolder(filepath.Join(t.TempDir(), "keys"))
	if _, err := LoadSealKey(f); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no key: %v", err)
	}
	made, err := LoadOrCreateSealKey(f)
	if err != nil {
		t.Fatal(err)
	}
	key, err := LoadOrCreateSealKey(f)
	if err != nil {
		t.Fatal(err)
	}
	a, err := made.Keep("z1", "R1", passphrase(t))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := made.Keep("z1", "R1", passphrase(t))
	if a == b || strings.Contains(a, "horse") {
		t.Errorf("kept as %s and %s", a, b)
	}
	if p, err := key.Recall("z1", "R1", a); err != nil || string(p.Bytes()) != plain {
		t.Errorf("recalled %d bytes, %v", len(p.Bytes()), err)
	}

	// Nobody else can make or move one.
	other, _ := NewKey()
	public, _ := key.Public()
	forged, err := other.kp.Seal([]byte(label("z1", "R1")+"known to me"), public)
	if err != nil {
		t.Fatal(err)
	}
	sealed, _ := Seal(public, passphrase(t))
	foreign, _ := other.Keep("z1", "R1", passphrase(t))
	for name, tt := range map[string][3]string{
		"another zone":     {"z2", "R1", a},
		"another revision": {"z1", "R2", a},
		"another's":        {"z1", "R1", foreign},
		"sealed for it":    {"z1", "R1", sealed},
		"forged":           {"z1", "R1", keptPrefix + base64.RawURLEncoding.EncodeToString(forged)},
		"changed":          {"z1", "R1", a[:len(a)-2] + "AA"},
		"cut":              {"z1", "R1", a[:len(a)/2]},
		"nothing":          {"z1", "R1", ""},
	} {
		if _, err := key.Recall(tt[0], tt[1], tt[2]); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzRecall(f *testing.F) {
	key, err := NewKey()
	if err != nil {
		f.Fatal(err)
	}
	p, _ := NewPassphrase([]byte(plain))
	good, _ := key.Keep("z1", "R1", p)
	f.Add(good)
	f.Add(keptPrefix)
	f.Fuzz(func(t *testing.T, kept string) {
		if got, err := key.Recall("z1", "R1", kept); err == nil && string(got.Bytes()) != plain {
			t.Errorf("%q is taken as %d bytes", kept, len(got.Bytes()))
		}
	})
}
