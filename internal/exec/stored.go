package exec

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/digest"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/internal/exec/storaged"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// storedDisk is a disk of a backup on the repository.
type storedDisk struct {
	index int
	name  string
	size  int64
	// links are the files that its content is in: that of the backup itself, and those that it
	// continues, the newest first.
	links []storedLink
}

// storedLink is a disk's file in one backup of a chain.
type storedLink struct {
	// path of the file, and of its digests (which may still be on the host).
	path, digests string
	// key of the digests; nil for none.
	key []byte
	// incremental says that it holds changes alone.
	incremental bool
}

// storedBackup is a backup with all that it continues, and what opens them.
type storedBackup struct {
	// chain is never empty, the newest first.
	chain []*repository.Backup
	// pass and keys, those of the digests of each backup, are nil for one that is not encrypted.
	pass *secret.Passphrase
	keys [][]byte
}

// stored finds a backup and its chain, which must be whole, and the keys to it where it is
// encrypted. The caller must wipe it.
func (e *Executor) stored(ctx context.Context, ws *workspace, ref messages.BackupRef, d messages.Details) (*storedBackup, error) {
	pass, err := e.passphrase(d.Passphrase)
	if err != nil {
		return nil, err
	}
	repo, err := ws.repository(ctx, ref.Repository)
	if err != nil {
		pass.Wipe()
		return nil, err
	}
	return findStored(ctx, repo, ref, pass)
}

// findStored is stored for a repository that is open, and a passphrase that is; the result wipes it.
func findStored(ctx context.Context, repo *repository.Repository, ref messages.BackupRef, pass *secret.Passphrase) (*storedBackup, error) {
	s := &storedBackup{pass: pass}
	if err := s.find(ctx, repo, ref); err != nil {
		s.wipe()
		return nil, err
	}
	return s, nil
}

func (s *storedBackup) find(ctx context.Context, repo *repository.Repository, ref messages.BackupRef) (err error) {
	if s.chain, err = repo.Chain(ctx, ref); err != nil {
		return err
	}
	if !s.manifest().Encryption.LUKS {
		s.keys = make([][]byte, len(s.chain))
		return nil
	}
	if s.pass == nil {
		return messages.Errorf(messages.CodePassphraseMissing, "backup %s is encrypted", ref.ID).
			WithHint("Give the passphrase it was taken with (--passphrase-file).")
	}
	opened := openedKeys{}
	defer opened.wipe()
	for _, b := range s.chain {
		key, err := opened.unwrap(b.Manifest.Digest.WrappedKeys, s.pass)
		if err != nil {
			return fmt.Errorf("backup %s: %w", b.Manifest.ID, err)
		}
		s.keys = append(s.keys, bytes.Clone(key))
	}
	return nil
}

// openedKeys are keys of digests by what they were wrapped in: to derive one is slow by design, and
// the backups of a chain share theirs.
type openedKeys map[string][]byte

func (o openedKeys) unwrap(wrapped []json.RawMessage, pass *secret.Passphrase) ([]byte, error) {
	text, err := json.Marshal(wrapped)
	if err != nil {
		return nil, messages.Errorf(messages.CodeBackupCorrupt, "a wrapped key of the manifest: %w", err)
	}
	if o[string(text)] == nil {
		key, err := unwrap(wrapped, pass)
		if err != nil {
			return nil, err
		}
		o[string(text)] = key
	}
	return o[string(text)], nil
}

func (o openedKeys) wipe() {
	for _, key := range o {
		clear(key)
	}
}

// unwrap opens the first of the wrapped keys that the passphrase opens.
func unwrap(wrapped []json.RawMessage, pass *secret.Passphrase) ([]byte, error) {
	err := error(messages.Errorf(messages.CodeBackupCorrupt, "the manifest holds no key to the digests"))
	for _, raw := range wrapped {
		var w secret.WrappedKey
		if jerr := json.Unmarshal(raw, &w); jerr != nil {
			err = messages.Errorf(messages.CodeBackupCorrupt, "a wrapped key of the manifest: %w", jerr)
			continue
		}
		var key []byte
		if key, err = w.Open(pass); err == nil {
			return key, nil
		}
	}
	return nil, err
}

// wrap wraps the key to the digests for each passphrase there is.
func (e *Executor) wrap(key []byte, passphrases ...*secret.Passphrase) ([]json.RawMessage, error) {
	guess := e.cfg.LUKSIterTime
	if guess == 0 {
		guess = storaged.DefaultIterTime
	}
	var wrapped []json.RawMessage
	for _, p := range passphrases {
		if p == nil {
			continue
		}
		w, err := secret.WrapKey(p, key, guess)
		if err != nil {
			return nil, messages.Errorf(messages.CodeInternal, "wrap the digest key: %w", err)
		}
		data, err := json.Marshal(w)
		if err != nil {
			return nil, messages.Errorf(messages.CodeInternal, "wrap the digest key: %w", err)
		}
		wrapped = append(wrapped, data)
	}
	return wrapped, nil
}

// wipe forgets what opens the backup.
func (s *storedBackup) wipe() {
	s.pass.Wipe()
	for _, k := range s.keys {
		clear(k)
	}
}

func (s *storedBackup) manifest() repository.Manifest { return s.chain[0].Manifest }

// disks finds the files of some of the backup's disks, from the newest back to one that is whole.
func (s *storedBackup) disks(ctx context.Context, from []repository.Disk) ([]storedDisk, error) {
	var disks []storedDisk
	for i, d := range from {
		disk := storedDisk{index: i, name: d.Name, size: d.VirtualBytes}
		for j, b := range s.chain {
			link, err := linkOf(ctx, b, d.Name)
			if err != nil {
				return nil, err
			}
			link.key = s.keys[j]
			disk.links = append(disk.links, link)
			if !link.incremental {
				break
			}
		}
		if last := disk.links[len(disk.links)-1]; last.incremental {
			return nil, messages.Errorf(messages.CodeBackupCorrupt, "disk %s is whole in no backup of its chain", d.Name)
		}
		disks = append(disks, disk)
	}
	return disks, nil
}

// open exports the disk, as its chain shows it, from a daemon, and returns what its content is compared with.
func (d storedDisk) open(ctx context.Context, from *storaged.Daemon, pass *secret.Passphrase, timeout time.Duration) (*diskCheck, error) {
	if err := from.OpenChain(ctx, d.name, d.backups(pass)); err != nil {
		return nil, err
	}
	size, err := exportSize(ctx, from.Socket(), d.name)
	if err != nil {
		return nil, err
	}
	if size != d.size {
		return nil, errImageSize(d, size)
	}
	return openCheck(ctx, timeout, d, d.links, func(link int) endpoint {
		return endpoint{socket: from.Socket(), export: storaged.LinkExport(d.name, link)}
	})
}

// failed tells what a copy of the disk has found that failed: a block that is not what it was is of a backup
// that is damaged.
func (d storedDisk) failed(ctx context.Context, err error) error {
	return mismatch(messages.CodeBackupCorrupt, d.name, undecodable(ctx, d.links, err))
}

// linkOf finds the files of one disk of one backup.
func linkOf(ctx context.Context, b *repository.Backup, name string) (storedLink, error) {
	for _, d := range b.Manifest.Disks {
		if d.Name != name {
			continue
		}
		if d.DigestsFile == "" || d.VirtualBytes == 0 {
			return storedLink{}, messages.Errorf(messages.CodeBackupCorrupt, "disk %s has no digests or no size in the manifest", d.Name)
		}
		l := storedLink{incremental: d.Incremental}
		var err error
		if l.path, err = b.Path(ctx, d.File); err != nil {
			return storedLink{}, err
		}
		l.digests, err = b.Path(ctx, d.DigestsFile)
		return l, err
	}
	return storedLink{}, messages.Errorf(messages.CodeBackupCorrupt, "backup %s has no disk %s", b.Manifest.ID, name)
}

// openDigests opens the digests of one of a disk's links, which must be those of a disk of its size.
func (d storedDisk) openDigests(ctx context.Context, l storedLink) (*digest.Reader, error) {
	r, err := onHost(ctx, messages.CodeSourceReadFailed, "open the digests", func() (*digest.Reader, error) { return digest.Open(l.digests, l.key) })
	if err != nil {
		return nil, messages.EnsureCode(messages.CodeBackupCorrupt, fmt.Errorf("disk %s: its digests: %w", d.name, err))
	}
	if r.Size() != d.size {
		_ = r.Close()
		return nil, messages.Errorf(messages.CodeBackupCorrupt, "disk %s: its digests are of %d bytes, the disk has %d", d.name, r.Size(), d.size)
	}
	return r, nil
}

// backups are the disk's files as a storage daemon opens them.
func (d storedDisk) backups(pass *secret.Passphrase) []storaged.Backup {
	var list []storaged.Backup
	for _, l := range d.links {
		list = append(list, storaged.Backup{Path: l.path, Passphrase: pass.Bytes()})
	}
	return list
}
