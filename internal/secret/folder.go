package secret

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The names of the publisher's keys in its Folder. Each file holds one nkeys seed.
const (
	// SealKeyFile is the curve key (SX…) that the zones' passphrases are kept with.
	SealKeyFile = "seal.key"
	// SignKeyFile is the key (SU…) that commands are signed with.
	SignKeyFile = "sign.key"
)

// systemFolder is where root's keys are.
const systemFolder = "/etc/nasfleet/keys"

// DefaultFolder returns the key folder of who runs the program: /etc/nasfleet/keys for root,
// $XDG_CONFIG_HOME/nasfleet (~/.config/nasfleet) for everybody else.
func DefaultFolder() string {
	if os.Geteuid() != 0 {
		if dir, err := os.UserConfigDir(); err == nil {
			return filepath.Join(dir, "nasfleet")
		}
	}
	return systemFolder
}

// Folder is the publisher's key folder: a file a key, mode 0600, in a folder of mode 0700. Whoever
// has a copy of it is the publisher. The zero Folder holds no key and takes none. Its methods may
// be called from any goroutine and by several programs at once.
type Folder struct{ dir string }

// NewFolder returns the key folder dir. It need not exist: the first key that is kept makes it.
func NewFolder(dir string) Folder { return Folder{dir} }

// Path returns where the key of that name is kept.
func (f Folder) Path(name string) string { return filepath.Join(f.dir, name) }

// Read returns the key of that name. One that is not there is fs.ErrNotExist; one that others
// could read or replace is refused. The caller clears what is returned.
func (f Folder) Read(name string) ([]byte, error) {
	if f.dir == "" {
		return nil, fmt.Errorf("key %s: no key folder is given: %w", name, fs.ErrNotExist)
	}
	for _, path := range []string{f.dir, f.Path(name)} {
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", name, err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			return nil, fmt.Errorf("key %s: others have rights to %s (mode %04o): take them away (chmod go=) and think of the key as known to them",
				name, path, info.Mode().Perm())
		}
	}
	key, err := os.ReadFile(f.Path(name))
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", name, err)
	}
	return key, nil
}

// Create keeps a new key under that name, durably. A name that is taken is fs.ErrExist, and the key
// that bears it stays.
func (f Folder) Create(name string, key []byte) error {
	if f.dir == "" {
		return fmt.Errorf("keep key %s: no key folder is given", name)
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return fmt.Errorf("keep key %s: %w", name, err)
	}
	return keepNew(f.Path(name), key)
}

// keepNew writes a whole file of mode 0600 and then links it to its name: of two programs that do
// so at once one is told fs.ErrExist, and a crash leaves no file of that name or a whole one.
func keepNew(path string, data []byte) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".key-*") // mode 0600
	if err != nil {
		return fmt.Errorf("keep %s: %w", path, err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("keep %s: %w", path, err)
	}
	if err := os.Link(tmp.Name(), path); err != nil {
		return fmt.Errorf("keep %s: %w", path, err)
	}
	// Its name has to survive a crash too: what is sealed for a key that is gone is lost.
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("keep %s: %w", path, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("keep %s: %w", path, err)
	}
	return nil
}
