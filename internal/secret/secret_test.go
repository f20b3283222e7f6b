package secret

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/messages"
)

const plain = "correct horse battery staple"

func passphrase(t *testing.T) *Passphrase {
	t.Helper()
	p, err := NewPassphrase([]byte(plain))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPassphraseNeverPrints(t *testing.T) {
	p := passphrase(t)
	type holder struct{ P *Passphrase }
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{p, holder{p}, []*Passphrase{p}} {
			if s := fmt.Sprintf(verb, v); strings.Contains(s, "horse") || strings.Contains(s, fmt.Sprintf("%x", "horse")) {
				t.Errorf("%s of %T prints the passphrase", verb, v)
			}
		}
	}
	if out, err := json.Marshal(holder{p}); err == nil {
		t.Errorf("json gives %s", out)
	}
	p.Wipe()
	if p.Bytes() != nil {
		t.Error("the passphrase outlives Wipe")
	}
}

func TestReadPassphrase(t *testing.T) {
	for in, want := range map[string]string{
		"abc": "abc", "abc\n": "abc", "abc\r\n": "abc", " a b ": " a b ", "ü€": "ü€",
		"": "", "\n": "", "a\nb": "", "a\x00b": "", strings.Repeat("x", 512): strings.Repeat("x", 512), strings.Repeat("x", 513): "",
	} {
		p, err := ReadPassphrase(strings.NewReader(in))
		if (err != nil) != (want == "") || string(p.Bytes()) != want {
			t.Errorf("%.20q: got %d bytes, %v", in, len(p.Bytes()), err)
		}
	}
}

func TestSealOpensOnlyForItsHost(t *testing.T) {
	mine, err := LoadOrCreateKey(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	other, _ := NewKey()
	public, _ := mine.Public()
	a, err := Seal(public, passphrase(t))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := Seal(public, passphrase(t))
	if a == b || strings.Contains(a, "horse") || !strings.HasPrefix(a, messages.SealedPrefix) {
		t.Errorf("sealed: %s and %s", a, b)
	}
	got, err := mine.Open(a)
	if err != nil || string(got.Bytes()) != plain {
		t.Errorf("opened %d bytes, %v", len(got.Bytes()), err)
	}
	if _, err := other.Open(a); messages.CodeOf(err) != messages.CodePassphraseForeign {
		t.Errorf("another key: %v", err)
	}
	for _, bad := range []string{"", "sealed1.", "sealed1.x.y", a[:len(a)-2], a + "AA", strings.Replace(a, "sealed1", "sealed2", 1)} {
		if _, err := mine.Open(bad); messages.CodeOf(err) != messages.CodePassphraseForeign {
			t.Errorf("%.30q: %v", bad, err)
		}
	}
	if _, err := Seal("XNOTAKEY", passphrase(t)); err == nil {
		t.Error("sealed for no key")
	}
}

func TestKeyIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	first, err := LoadOrCreateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	second, err := LoadOrCreateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := first.Public()
	b, _ := second.Public()
	info, err := os.Stat(path)
	if a != b || err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("keys %s and %s, file %v, %v", a, b, info, err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".key-*")); left != nil {
		t.Errorf("left: %v", left)
	}
	if err := os.WriteFile(path, []byte("not a seed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateKey(path); err == nil {
		t.Error("a broken key file was taken")
	}
}

func TestWrapKey(t *testing.T) {
	key := NewDigestKey()
	w, err := WrapKey(passphrase(t), key, 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	got, err := w.Open(passphrase(t))
	if err != nil || !bytes.Equal(got, key) {
		t.Errorf("opened %v", err)
	}
	wrong, _ := NewPassphrase([]byte("wrong"))
	if _, err := w.Open(wrong); messages.CodeOf(err) != messages.CodeWrongPassphrase {
		t.Errorf("wrong passphrase: %v", err)
	}
	w.Iterations = maxIterations + 1
	if _, err := w.Open(passphrase(t)); messages.CodeOf(err) != messages.CodeBackupCorrupt {
		t.Errorf("hostile iterations: %v", err)
	}
	for guess, want := range map[time.Duration]int{0: minIterations, 20 * time.Millisecond: iterationsASecond / 50, time.Second: iterationsASecond} {
		if w, err := WrapKey(passphrase(t), key, guess); err != nil || w.Iterations != want {
			t.Errorf("a guess of %s takes %d iterations, want %d: %v", guess, w.Iterations, want, err)
		}
	}
}
