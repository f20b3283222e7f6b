package fleet

import (
	"fmt"
	"io"
	"os"

	"github.com/nasfleet/nasfleet/internal/secret"
)

// Passphrases reads passphrase files, each of them once: standard input can be read only once, and
// a thousand targets may name the same file. It is not for concurrent use.
type Passphrases struct {
	stdin io.Reader
	read  map[string]*secret.Passphrase
}

// NewPassphrases returns a reader of passphrase files; stdin is the file named "-".
func NewPassphrases(stdin io.Reader) *Passphrases {
	return &Passphrases{stdin: stdin, read: map[string]*secret.Passphrase{}}
}

// Read returns the passphrase in the file. It belongs to r; Wipe ends it.
func (r *Passphrases) Read(path string) (*secret.Passphrase, error) {
	if p := r.read[path]; p != nil {
		return p, nil
	}
	p, err := r.open(path)
	if err != nil {
		return nil, &Error{Class: Usage, Err: fmt.Errorf("passphrase file %s: %w", path, err)}
	}
	r.read[path] = p
	return p, nil
}

func (r *Passphrases) open(path string) (*secret.Passphrase, error) {
	if path == "-" {
		return secret.ReadPassphrase(r.stdin)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return secret.ReadPassphrase(f)
}

// Wipe overwrites every passphrase that was read.
func (r *Passphrases) Wipe() {
	for _, p := range r.read {
		p.Wipe()
	}
	clear(r.read)
}
