package access

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/nats-io/nkeys"

	"github.com/nasfleet/nasfleet/internal/secret"
)

// The names of what lies in the publisher's key folder beside secret.SealKeyFile and SignKeyFile.
const (
	operatorKey = "operator.key"  // signs the accounts; there where users are JWTs
	systemKey   = "system.key"    // the system account's
	backupKey   = "backup.key"    // accountBackup's
	hostsKey    = "hosts.key"     // accountHosts'
	addingKey   = "add-hosts.key" // signs the users of hosts: all that host add needs
	caKey       = "ca.key"        // signs the server's certificate (PEM)
	caCert      = "ca.pem"

	// PublisherCreds and SystemCreds are credentials of the publisher, and of whoever looks after the
	// server: files for --creds where users are JWTs.
	PublisherCreds = "publisher.creds"
	SystemCreds    = "system.creds"
	// PublisherNKey and SystemNKey are the same for --nkey, where users are nkeys.
	PublisherNKey = "publisher.nk"
	SystemNKey    = "system.nk"
)

// Kind is how a server knows its users.
type Kind string

// The kinds.
const (
	// JWT: users are signed by the fleet's own operator. A host is added without touching the server.
	JWT Kind = "jwt"
	// NKey: users are listed in the server's configuration. For a small server.
	NKey Kind = "nkey"
)

// KindOf returns which kind of users the key folder is set up for: JWT where it has an operator.
func KindOf(f secret.Folder) (Kind, error) {
	_, err := loadKey(f, operatorKey)
	switch {
	case err == nil:
		return JWT, nil
	case errors.Is(err, fs.ErrNotExist):
		return NKey, nil
	}
	return "", err
}

// loadKey reads a key pair of the folder.
func loadKey(f secret.Folder, name string) (nkeys.KeyPair, error) {
	seed, err := f.Read(name)
	if err != nil {
		return nil, err
	}
	defer clear(seed)
	kp, err := nkeys.FromSeed(seed)
	if err != nil {
		return nil, fmt.Errorf("key %s is not a seed", f.Path(name))
	}
	return kp, nil
}

// loadOrCreateKey reads a key pair of the folder, or makes one.
func loadOrCreateKey(f secret.Folder, name string, prefix nkeys.PrefixByte) (nkeys.KeyPair, error) {
	kp, err := loadKey(f, name)
	if !errors.Is(err, fs.ErrNotExist) {
		return kp, err
	}
	if kp, err = nkeys.CreatePair(prefix); err != nil {
		return nil, fmt.Errorf("make key %s: %w", name, err)
	}
	seed, err := kp.Seed() // the pair's own, not a copy
	if err != nil {
		return nil, fmt.Errorf("make key %s: %w", name, err)
	}
	if err := f.Create(name, seed); errors.Is(err, fs.ErrExist) {
		return loadKey(f, name) // somebody was faster
	} else if err != nil {
		return nil, err
	}
	return kp, nil
}

// keep writes a file of the folder once: what is there stays.
func keep(f secret.Folder, name string, data []byte) error {
	if err := f.Create(name, data); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
