package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/nasfleet/nasfleet/internal/secret"
)

type keyCmd struct {
	StateDir string `help:"Folder for the host's key and journal." default:"/var/lib/nasfleet"`
}

// Help is printed by --help.
func (*keyCmd) Help() string {
	return "publisher host add takes it (--seal-key), so that the host is known by its key and not by what it announces."
}

// Run prints the key. It needs neither NATS nor libvirt: a host is added before it runs.
func (c *keyCmd) Run(stdout io.Writer) error {
	if err := os.MkdirAll(c.StateDir, 0o711); err != nil {
		return fmt.Errorf("make the state folder: %w", err)
	}
	key, err := secret.LoadOrCreateKey(hostKey(c.StateDir))
	if err != nil {
		return err
	}
	public, err := key.Public()
	if err == nil {
		_, err = fmt.Fprintln(stdout, public)
	}
	return err
}

// hostKey is the file of the key that passphrases for this host are sealed with.
func hostKey(stateDir string) string { return filepath.Join(stateDir, "host.key") }
