package secret

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// maxPassphrase is QEMU's bound on a LUKS passphrase (bytes); a longer one could be set but not
// given to every tool that opens the container.
const maxPassphrase = 512

// Passphrase is the secret of a LUKS container. It prints as "(redacted)" whatever the verb, and
// cannot be encoded: a log, an event or a file never holds it by accident.
type Passphrase struct{ b []byte }

// NewPassphrase checks and takes a copy of b: 1 to 512 bytes without line breaks or NUL, so that
// it can be typed and piped to other tools.
func NewPassphrase(b []byte) (*Passphrase, error) {
	switch {
	case len(b) == 0:
		return nil, errors.New("the passphrase is empty")
	case len(b) > maxPassphrase:
		return nil, fmt.Errorf("the passphrase has more than %d bytes", maxPassphrase)
	case bytes.ContainsAny(b, "\n\r\x00"):
		return nil, errors.New("the passphrase holds a line break or a NUL")
	}
	return &Passphrase{b: bytes.Clone(b)}, nil
}

// ReadPassphrase reads one passphrase up to the end of r; one line break at its end is dropped,
// as editors and echo leave one.
func ReadPassphrase(r io.Reader) (*Passphrase, error) {
	// Not io.ReadAll, which leaves a copy behind each time that it needs more room.
	b := make([]byte, maxPassphrase+3)
	defer clear(b)
	n, err := io.ReadFull(r, b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("read the passphrase: %w", err)
	}
	return NewPassphrase(bytes.TrimSuffix(bytes.TrimSuffix(b[:n], []byte("\n")), []byte("\r")))
}

// Bytes returns the passphrase itself, not a copy: it is gone after Wipe. A nil Passphrase has none.
func (p *Passphrase) Bytes() []byte {
	if p == nil {
		return nil
	}
	return p.b
}

// Wipe overwrites the passphrase. What the runtime or a library copied before is out of reach.
func (p *Passphrase) Wipe() {
	if p != nil {
		clear(p.b)
		p.b = nil
	}
}

// Format implements fmt.Formatter, so that no verb prints the passphrase.
func (p *Passphrase) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(redacted)") }

// MarshalText refuses to encode the passphrase.
func (p *Passphrase) MarshalText() ([]byte, error) {
	return nil, errors.New("a passphrase is not encoded")
}
