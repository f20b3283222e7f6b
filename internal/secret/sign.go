package secret

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/nasfleet/nasfleet/messages"
)

// signaturePrefix begins a signature and names its form.
const signaturePrefix = "sig1."

// signedContext begins what is signed, so that a signature made here means nothing elsewhere, and
// none made elsewhere, such as that of a NATS login, means anything here.
const signedContext = "nasfleet command 1\n"

// clockSkew is how far a command's issued_at may lie in the future of the one who checks it.
const clockSkew = time.Hour

// Signer signs commands with the publisher's key, an nkeys ed25519 key of type user (U…). It must be
// no key that a NATS login uses: a server chooses what a login signs.
type Signer struct {
	kp     nkeys.KeyPair
	public string
}

// NewSigner makes a key.
func NewSigner() (*Signer, error) {
	kp, err := nkeys.CreatePairWithRand(nkeys.PrefixByteUser, rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a signing key: %w", err)
	}
	return newSigner(kp)
}

func newSigner(kp nkeys.KeyPair) (*Signer, error) {
	public, err := kp.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	if !nkeys.IsValidPublicUserKey(public) {
		return nil, fmt.Errorf("signing key: %s is no key of type user", public)
	}
	return &Signer{kp: kp, public: public}, nil
}

// LoadSigner reads the publisher's key from its folder. One that is not there is fs.ErrNotExist.
func LoadSigner(f Folder) (*Signer, error) {
	seed, err := f.Read(SignKeyFile)
	if err != nil {
		return nil, err
	}
	defer clear(seed)
	kp, err := nkeys.FromSeed(bytes.TrimSpace(seed))
	if err != nil {
		return nil, fmt.Errorf("the signing key in %s is not a seed", f.Path(SignKeyFile))
	}
	return newSigner(kp)
}

// LoadOrCreateSigner reads the publisher's key from its folder, or makes one and keeps it there.
func LoadOrCreateSigner(f Folder) (*Signer, error) {
	s, err := LoadSigner(f)
	if !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	if s, err = NewSigner(); err != nil {
		return nil, err
	}
	seed, err := s.kp.Seed() // the signer's own, not a copy
	if err != nil {
		return nil, fmt.Errorf("make a signing key: %w", err)
	}
	if err := f.Create(SignKeyFile, seed); errors.Is(err, fs.ErrExist) {
		return LoadSigner(f) // somebody was faster
	} else if err != nil {
		return nil, err
	}
	return s, nil
}

// Public returns the half that hosts check commands with (U…).
func (s *Signer) Public() string { return s.public }

// Sign returns the signature of a command: sig1.<public key>.<base64url>.<subject>. It covers the
// subject, and so the zone, the host and the job, and every byte of the command, issued_at too.
func (s *Signer) Sign(subject string, data []byte) (string, error) {
	sig, err := s.kp.Sign(signedBytes(subject, data))
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	return signaturePrefix + s.public + "." + base64.RawURLEncoding.EncodeToString(sig) + "." + subject, nil
}

// signedBytes cannot be read in two ways: a subject holds no line break.
func signedBytes(subject string, data []byte) []byte {
	return slices.Concat([]byte(signedContext), []byte(subject), []byte("\n"), data)
}

// Verifier checks commands against the publishers' keys. It may be used by several goroutines at once.
type Verifier struct {
	keys []string
	// maxAge is how old a command may be.
	maxAge time.Duration
}

// NewVerifier returns a Verifier. Each source is a public key (U…), or the path of a file with one
// a line, where lines that begin with # are left out. maxAge is how long a command is valid after
// its issued_at.
func NewVerifier(maxAge time.Duration, sources ...string) (*Verifier, error) {
	v := &Verifier{maxAge: maxAge}
	for _, s := range sources {
		if nkeys.IsValidPublicUserKey(s) {
			v.keys = append(v.keys, s)
			continue
		}
		keys, err := readPublicKeys(s)
		if err != nil {
			return nil, err
		}
		v.keys = append(v.keys, keys...)
	}
	if len(v.keys) == 0 {
		return nil, errors.New("no publisher's key is given")
	}
	return v, nil
}

func readPublicKeys(path string) ([]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("publisher's key: %w", err)
	}
	defer clear(data)
	var keys []string
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case nkeys.IsValidPublicUserKey(line):
			keys = append(keys, line)
		default: // not quoted: it may be a seed
			return nil, fmt.Errorf("publisher's key: line %d of %s is not a public key (U…)", i+1, path)
		}
	}
	return keys, nil
}

// Verify checks the signature of a command that came on a subject. A missing one is
// CodeCommandUnsigned; one that is not by one of the keys over these bytes CodeCommandForged; and
// a valid one of another subject CodeCommandReaddressed.
func (v *Verifier) Verify(subject, signature string, data []byte) error {
	if signature == "" {
		return messages.Errorf(messages.CodeCommandUnsigned, "the command carries no signature")
	}
	by, sig, signed, err := parseSignature(signature)
	if err != nil {
		return messages.Errorf(messages.CodeCommandForged, "the command's signature: %w", err)
	}
	if !slices.Contains(v.keys, by) {
		return messages.Errorf(messages.CodeCommandForged, "the command is signed by %s, which is no key of this host's publishers", by)
	}
	kp, err := nkeys.FromPublicKey(by)
	if err != nil {
		return messages.Errorf(messages.CodeCommandForged, "the command's signature: %w", err)
	}
	if kp.Verify(signedBytes(signed, data), sig) != nil {
		return messages.Errorf(messages.CodeCommandForged, "the command is not what was signed")
	}
	if signed != subject {
		return messages.Errorf(messages.CodeCommandReaddressed, "the command was signed for %s and came on %s", signed, subject)
	}
	return nil
}

// VerifyTime refuses a command that was issued too long ago, or well in the future, as CodeCommandExpired.
func (v *Verifier) VerifyTime(issued, now time.Time) error {
	switch age := now.Sub(issued); {
	case age > v.maxAge:
		return messages.Errorf(messages.CodeCommandExpired, "the command was issued %v ago, and is valid for %v", age.Round(time.Second), v.maxAge)
	case age < -clockSkew:
		return messages.Errorf(messages.CodeCommandExpired, "the command was issued %v from now", (-age).Round(time.Second))
	}
	return nil
}

func parseSignature(s string) (by string, sig []byte, subject string, err error) {
	rest, ok := strings.CutPrefix(s, signaturePrefix)
	t := strings.SplitN(rest, ".", 3)
	if !ok || len(t) != 3 || !nkeys.IsValidPublicUserKey(t[0]) || t[2] == "" || strings.ContainsAny(t[2], "\r\n") {
		return "", nil, "", errors.New("not of the form sig1.KEY.SIGNATURE.SUBJECT")
	}
	if sig, err = base64.RawURLEncoding.Strict().DecodeString(t[1]); err != nil {
		return "", nil, "", errors.New("not base64url")
	}
	return t[0], sig, t[2], nil
}
