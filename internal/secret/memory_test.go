package secret

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/nasfleet/nasfleet/tests/lab"
)

// lend lends f a new passphrase that is nowhere else in memory, and wipes it afterwards.
func lend(t *testing.T, f func(text []byte)) lab.Secret {
	t.Helper()
	text := make([]byte, 40)
	_, _ = rand.Read(text)
	for i := range text {
		text[i] = 'a' + text[i]%26
	}
	s := lab.HideSecret(text)
	text = s.Reveal()
	if s.InMemory(t) == 0 {
		t.Fatal("what is in memory is not found")
	}
	f(text)
	clear(text)
	return s
}

// TestWiped looks for a passphrase in all the memory of the process after it was used.
func TestWiped(t *testing.T) {
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.Public()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "passphrase")
	for name, use := range map[string]func(t *testing.T, p *Passphrase){
		"nothing": func(*testing.T, *Passphrase) {},
		"sealed and opened": func(t *testing.T, p *Passphrase) {
			sealed, err := Seal(public, p)
			if err != nil {
				t.Fatal(err)
			}
			opened, err := key.Open(sealed)
			if err != nil {
				t.Fatal(err)
			}
			opened.Wipe()
		},
		"kept and recalled": func(t *testing.T, p *Passphrase) {
			kept, err := key.Keep("z1", "R", p)
			if err != nil {
				t.Fatal(err)
			}
			recalled, err := key.Recall("z1", "R", kept)
			if err != nil {
				t.Fatal(err)
			}
			recalled.Wipe()
		},
		"printed": func(_ *testing.T, p *Passphrase) { _, _ = fmt.Fprintf(io.Discard, "%v %s %x", p, p, p) },
	} {
		t.Run(name, func(t *testing.T) {
			s := lend(t, func(text []byte) {
				if err := os.WriteFile(path, text, 0o600); err != nil {
					t.Fatal(err)
				}
				f, err := os.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				p, err := ReadPassphrase(f)
				if err != nil || !bytes.Equal(p.Bytes(), text) {
					t.Fatal("another passphrase was read", err)
				}
				use(t, p)
				p.Wipe()
				if err := f.Close(); err != nil {
					t.Fatal(err)
				}
			})
			if n := s.InMemory(t); n > 0 {
				t.Errorf("it is still %d times in memory", n)
			}
		})
	}
}
