package secret

import (
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/nasfleet/nasfleet/messages"
)

const jobSubject = "backup.jobs.z1.h1.01JD8C9E3Y5N8Q2R4T6V8X0Z1B"

func signer(t testing.TB) *Signer {
	t.Helper()
	s, err := NewSigner()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func verifier(t testing.TB, sources ...string) *Verifier {
	t.Helper()
	v, err := NewVerifier(time.Hour, sources...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func sign(t testing.TB, s *Signer, subject, data string) string {
	t.Helper()
	signature, err := s.Sign(subject, []byte(data))
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

func TestVerify(t *testing.T) {
	mine, other := signer(t), signer(t)
	good := sign(t, mine, jobSubject, "command")
	elsewhere := "backup.jobs.z1.h2.01JD8C9E3Y5N8Q2R4T6V8X0Z1B"
	for name, tt := range map[string]struct {
		subject, signature, data string
		want                     messages.Code
	}{
		"as it was signed":        {jobSubject, good, "command", ""},
		"no signature":            {jobSubject, "", "command", messages.CodeCommandUnsigned},
		"altered":                 {jobSubject, good, "commanD", messages.CodeCommandForged},
		"cut":                     {jobSubject, good, "comman", messages.CodeCommandForged},
		"another's key":           {jobSubject, sign(t, other, jobSubject, "command"), "command", messages.CodeCommandForged},
		"another's, under mine":   {jobSubject, strings.Replace(sign(t, other, jobSubject, "command"), other.Public(), mine.Public(), 1), "command", messages.CodeCommandForged},
		"another host":            {elsewhere, good, "command", messages.CodeCommandReaddressed},
		"the address rewritten":   {elsewhere, strings.Replace(good, jobSubject, elsewhere, 1), "command", messages.CodeCommandForged},
		"line breaks moved":       {jobSubject, sign(t, mine, "x", jobSubject+"\ncommand"), "command", messages.CodeCommandForged},
		"not a signature":         {jobSubject, "hello", "command", messages.CodeCommandForged},
		"a signature of nothing":  {jobSubject, "sig1." + mine.Public() + ".." + jobSubject, "command", messages.CodeCommandForged},
		"another form":            {jobSubject, strings.Replace(good, "sig1", "sig2", 1), "command", messages.CodeCommandForged},
		"signed as a login would": {jobSubject, login(t, mine, jobSubject+"\ncommand"), "command", messages.CodeCommandForged},
	} {
		if err := verifier(t, mine.Public()).Verify(tt.subject, tt.signature, []byte(tt.data)); messages.CodeOf(err) != tt.want {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	if err := verifier(t, other.Public(), mine.Public()).Verify(jobSubject, good, []byte("command")); err != nil {
		t.Errorf("one of two keys: %v", err)
	}
}

// login signs bytes bare, as the login to a NATS server does with what the server chooses.
func login(t *testing.T, s *Signer, nonce string) string {
	t.Helper()
	sig, err := s.kp.Sign([]byte(nonce))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Replace(sign(t, s, jobSubject, ""), strings.Split(sign(t, s, jobSubject, ""), ".")[2], base64.RawURLEncoding.EncodeToString(sig), 1)
}

func TestVerifyTime(t *testing.T) {
	v, now := verifier(t, signer(t).Public()), time.Now()
	for age, want := range map[time.Duration]messages.Code{
		0: "", time.Hour: "", time.Hour + time.Second: messages.CodeCommandExpired,
		-time.Minute: "", -2 * time.Hour: messages.CodeCommandExpired,
	} {
		if err := v.VerifyTime(now.Add(-age), now); messages.CodeOf(err) != want {
			t.Errorf("issued %v ago: %v, want %q", age, err, want)
		}
	}
}

func TestVerifierKeys(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	a, b := signer(t), signer(t)
	v := verifier(t, write("keys", "# ours\n"+a.Public()+"\n\n "+b.Public()+" \n"))
	for _, s := range []*Signer{a, b} {
		if err := v.Verify(jobSubject, sign(t, s, jobSubject, "x"), []byte("x")); err != nil {
			t.Error(err)
		}
	}
	seed, err := a.kp.Seed()
	if err != nil {
		t.Fatal(err)
	}
	account, _ := nkeys.CreateAccount()
	public, _ := account.PublicKey()
	for name, source := range map[string]string{
		"a seed": write("seed", string(seed)), "nothing": write("empty", "# nothing\n"), "no file": filepath.Join(dir, "none"),
		"another kind of key": write("account", public),
	} {
		_, err := NewVerifier(time.Hour, source)
		if err == nil || strings.Contains(err.Error(), string(seed)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewVerifier(time.Hour); err == nil {
		t.Error("a verifier without a key")
	}
}

func TestSignerIsKept(t *testing.T) {
	f := NewFolder(filepath.Join(t.TempDir(), "keys"))
	if _, err := LoadSigner(f); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	a, err := LoadOrCreateSigner(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := LoadSigner(f)
	if err != nil || a.Public() != b.Public() {
		t.Fatalf("%v, %s and %s", err, a.Public(), b.Public())
	}
	for _, s := range []*Signer{a, b} { // the one that was just made, too
		if err := verifier(t, a.Public()).Verify(jobSubject, sign(t, s, jobSubject, "x"), []byte("x")); err != nil {
			t.Error(err)
		}
	}
	if err := f.Create(SignKeyFile, nil); !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.Path(SignKeyFile), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateSigner(f); err == nil {
		t.Error("a broken key was taken or replaced")
	}
}

func TestDerive(t *testing.T) {
	k, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	other, _ := NewKey()
	seen := map[string]bool{}
	for _, d := range []struct {
		key   *Key
		label string
	}{{k, "a"}, {k, "b"}, {other, "a"}} {
		b, err := d.key.Derive(d.label)
		if err != nil || len(b) != 32 || seen[string(b)] {
			t.Errorf("%d bytes, %v, seen before: %v", len(b), err, seen[string(b)])
		}
		seen[string(b)] = true
	}
	if b, _ := k.Derive("a"); !seen[string(b)] {
		t.Error("another secret each time")
	}
}

// Whatever a header holds, it is refused with a code or is the signature itself.
func FuzzVerify(f *testing.F) {
	s := signer(f)
	good := sign(f, s, jobSubject, "command")
	for _, seed := range []string{good, "", "sig1.", "sig1...", "sig1." + s.Public() + ".AA." + jobSubject, good + "=", good + "\n"} {
		f.Add(seed, []byte("command"))
	}
	v := verifier(f, s.Public())
	f.Fuzz(func(t *testing.T, signature string, data []byte) {
		err := v.Verify(jobSubject, signature, data)
		if err == nil && (signature != good || string(data) != "command") {
			t.Errorf("%q over %q was taken", signature, data)
		}
		if code := messages.CodeOf(err); err != nil && code != messages.CodeCommandUnsigned && code != messages.CodeCommandForged {
			t.Errorf("%v", err)
		}
	})
}
