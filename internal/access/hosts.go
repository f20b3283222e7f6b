package access

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// hostsFolder is where the hosts that were added are kept, a file each.
const hostsFolder = "hosts"

// maxHostFile bounds what is read of a file of a host (bytes).
const maxHostFile = 64 << 10

// The kinds of errors of Hosts. Test for them with errors.Is.
var (
	// ErrUnknownHost: the host was not added.
	ErrUnknownHost = errors.New("the host was not added")
	// ErrRevoked: the host was added, and revoked since.
	ErrRevoked = errors.New("the host was revoked")
	// ErrAdded: the host is there already.
	ErrAdded = errors.New("the host was added before")
)

// Host is a host that was added to the fleet.
type Host struct {
	Zone string `json:"zone"`
	Host string `json:"host"`
	// SealKey is the curve key (X…) that its passphrases are sealed with, whatever it announces.
	SealKey string `json:"seal_key"`
	// User is the public key (U…) of its NATS user.
	User    string    `json:"user"`
	AddedAt time.Time `json:"added_at"`
	// RevokedAt is set when it was revoked.
	RevokedAt *time.Time `json:"revoked_at,omitempty"`
	// OldUsers are those that it had before it was added again.
	OldUsers []string `json:"old_users,omitempty"`
}

// Name is the host's zone and name.
func (h Host) Name() string { return h.Zone + "/" + h.Host }

// Hosts are those that were added, kept in the publisher's key folder: who can write there is the
// publisher. Its methods may be called by several programs at once.
type Hosts struct{ folder secret.Folder }

// NewHosts returns the hosts of a key folder.
func NewHosts(f secret.Folder) Hosts { return Hosts{f} }

func (h Hosts) path(zone, host string) string {
	return filepath.Join(h.folder.Path(hostsFolder), zone+"."+host+".json")
}

// Get returns a host, revoked or not; ErrUnknownHost where it was never added.
func (h Hosts) Get(zone, host string) (Host, error) {
	if err := errors.Join(messages.CheckLabel("zone", zone), messages.CheckLabel("host", host)); err != nil {
		return Host{}, err
	}
	return read(h.path(zone, host))
}

// List returns all that were added, revoked ones too, by zone and name. There being none is no error.
func (h Hosts) List() ([]Host, error) {
	files, err := filepath.Glob(filepath.Join(h.folder.Path(hostsFolder), "*.json"))
	if err != nil {
		return nil, fmt.Errorf("list the hosts: %w", err)
	}
	hosts := make([]Host, 0, len(files))
	for _, f := range files {
		host, err := read(f)
		if errors.Is(err, ErrUnknownHost) {
			continue // taken away a moment ago
		}
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, host)
	}
	slices.SortFunc(hosts, func(x, y Host) int {
		return cmp.Or(cmp.Compare(x.Zone, y.Zone), cmp.Compare(x.Host, y.Host))
	})
	return hosts, nil
}

// Add makes a host's credentials and notes it with its seal key. What is returned goes to the host
// and is kept nowhere else. A host that is there is ErrAdded; one that was revoked can be added again.
func (h Hosts) Add(zone, host, sealKey string, now time.Time) (credentials []byte, err error) {
	entry, err := h.Get(zone, host)
	switch {
	case err == nil && entry.RevokedAt == nil:
		return nil, fmt.Errorf("%s: %w", entry.Name(), ErrAdded)
	case err == nil:
		entry.OldUsers = append(entry.OldUsers, entry.User)
	case !errors.Is(err, ErrUnknownHost):
		return nil, err
	}
	if !nkeys.IsValidPublicCurveKey(sealKey) {
		return nil, fmt.Errorf("%q is not a seal key (X…)", sealKey)
	}
	credentials, user, err := h.credentials(zone, host)
	if err != nil {
		return nil, err
	}
	entry = Host{Zone: zone, Host: host, SealKey: sealKey, User: user, AddedAt: now.UTC(), OldUsers: entry.OldUsers}
	return credentials, h.write(entry)
}

// credentials makes a user for a host: a file for --creds or --nkey.
func (h Hosts) credentials(zone, host string) (data []byte, user string, err error) {
	kind, err := KindOf(h.folder)
	if err != nil {
		return nil, "", err
	}
	if kind == JWT {
		adding, err := loadKey(h.folder, addingKey)
		if err != nil {
			return nil, "", err
		}
		account, err := loadKey(h.folder, hostsKey)
		if err != nil {
			return nil, "", err
		}
		return newHost(adding, public(account), zone, host)
	}
	return newNKey()
}

// newNKey returns the seed of a new user, and its public key.
func newNKey() (seed []byte, user string, err error) {
	kp, err := nkeys.CreateUser()
	if err != nil {
		return nil, "", fmt.Errorf("make a user: %w", err)
	}
	if seed, err = kp.Seed(); err != nil {
		return nil, "", fmt.Errorf("make a user: %w", err)
	}
	return append(seed, '\n'), public(kp), nil
}

// Revoke notes that a host's credentials are to be taken no more. The server learns of it from the
// account (AccountJWTs) or from its configuration (HostsConf).
func (h Hosts) Revoke(zone, host string, now time.Time) (Host, error) {
	entry, err := h.Get(zone, host)
	if err != nil {
		return entry, err
	}
	if entry.RevokedAt == nil {
		now = now.UTC()
		entry.RevokedAt = &now
	}
	return entry, h.write(entry)
}

// Pinned returns the key that passphrases for a host have to be sealed with, "" where no host was
// ever added and so any key will do. ErrUnknownHost and ErrRevoked are for hosts that get none.
func (h Hosts) Pinned(zone, host string) (string, error) {
	entry, err := h.Get(zone, host)
	if errors.Is(err, ErrUnknownHost) {
		all, lerr := h.List()
		if lerr == nil && len(all) == 0 {
			return "", nil
		}
		return "", errors.Join(lerr, err)
	}
	if err == nil && entry.RevokedAt != nil {
		err = fmt.Errorf("%s: %w", entry.Name(), ErrRevoked)
	}
	return entry.SealKey, err
}

// revoked lists the users that are to be taken no more.
func revoked(hosts []Host) []string {
	var users []string
	for _, h := range hosts {
		users = append(users, h.OldUsers...)
		if h.RevokedAt != nil {
			users = append(users, h.User)
		}
	}
	return users
}

func read(path string) (Host, error) {
	name := strings.Replace(strings.TrimSuffix(filepath.Base(path), ".json"), ".", "/", 1)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Host{}, fmt.Errorf("%s: %w", name, ErrUnknownHost)
	}
	if err != nil {
		return Host{}, fmt.Errorf("host %s: %w", name, err)
	}
	if info.Mode().Perm()&0o022 != 0 || info.Size() > maxHostFile {
		return Host{}, fmt.Errorf("host %s: others may write %s, or it is too large: what it says of the host is not to be trusted", name, path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return Host{}, fmt.Errorf("host %s: %w", name, err)
	}
	h, err := decodeHost(data)
	if err == nil && h.Name() != name {
		err = fmt.Errorf("it is about %s", h.Name())
	}
	if err != nil {
		return Host{}, fmt.Errorf("%s: %w", path, err)
	}
	return h, nil
}

// decodeHost reads the file of a host.
func decodeHost(data []byte) (Host, error) {
	var h Host
	if err := json.Unmarshal(data, &h); err != nil {
		return Host{}, fmt.Errorf("not a host: %w", err)
	}
	if err := errors.Join(messages.CheckLabel("zone", h.Zone), messages.CheckLabel("host", h.Host)); err != nil {
		return Host{}, err
	}
	if !nkeys.IsValidPublicCurveKey(h.SealKey) {
		return Host{}, errors.New("seal_key is no public curve key")
	}
	for _, user := range append([]string{h.User}, h.OldUsers...) {
		if !nkeys.IsValidPublicUserKey(user) {
			return Host{}, errors.New("a user is no public user key")
		}
	}
	return h, nil
}

// write replaces the file of a host, whole or not at all.
func (h Hosts) write(entry Host) error {
	data, err := json.MarshalIndent(entry, "", "  ")
	if err != nil {
		return fmt.Errorf("host %s: %w", entry.Name(), err)
	}
	if err := os.MkdirAll(h.folder.Path(hostsFolder), 0o700); err != nil {
		return fmt.Errorf("host %s: %w", entry.Name(), err)
	}
	return replaceFile(h.path(entry.Zone, entry.Host), append(data, '\n'), 0o600)
}

// replaceFile writes a file whole, durably, in place of one that may be there.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}
