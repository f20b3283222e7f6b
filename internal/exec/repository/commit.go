package repository

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"
)

// blockUnit is what st_blocks counts in (bytes; stat(2)).
const blockUnit = 512

// step is one durable move towards a committed backup. After a crash between any two of them there is
// either no backup or a whole one.
type step struct {
	name string
	run  func(*os.Root) error
}

// Commit makes the backup real: it syncs every file, measures them, writes manifest.json last, renames
// <id>.partial to <id>, and syncs the folders above. It sets the manifest's Version, FinishedAt if it is zero,
// and each disk's FileBytes and StoredBytes; the rest is the caller's, and the id and VM must be those of
// Create. A parent that is gone is CodeChainBroken. When ctx ends there is no backup, or it is there and Commit says so: what gives the backup its
// name is not broken off, however the job is told to end. After another error the backup may be there only
// if one of the last two steps failed; Create then says so.
func (p *Partial) Commit(ctx context.Context, m Manifest) (*Backup, error) {
	m.Disks = append([]Disk(nil), m.Disks...)
	if err := p.take(ctx, p.steps(&m)); err != nil {
		return nil, err
	}
	if err := p.take(context.WithoutCancel(ctx), p.naming(&m)); err != nil {
		return nil, err
	}
	return p.r.backup(p.loc, m), nil
}

// take takes steps one after the other.
func (p *Partial) take(ctx context.Context, steps []step) error {
	what := "commit " + p.loc.String()
	return do(ctx, p.r, long, what, func(ctx context.Context, root *os.Root) error {
		for _, s := range steps {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := s.run(root); err != nil {
				return writeError(what+": "+s.name, err)
			}
		}
		return nil
	})
}

// steps make everything durable below the name of an unfinished backup.
func (p *Partial) steps(m *Manifest) []step {
	partial := p.path()
	return []step{
		{"sync the files", func(root *os.Root) error { return inFolder(root, partial, syncFiles) }},
		{"measure the files", func(root *os.Root) error {
			return inFolder(root, partial, func(dir *os.Root) error { return p.complete(dir, m) })
		}},
		{"sync the folder", func(root *os.Root) error { return syncFolder(root, partial) }},
		{"write the manifest", func(root *os.Root) error {
			return inFolder(root, partial, func(dir *os.Root) error { return writeManifest(dir, *m) })
		}},
		{"name the manifest", func(root *os.Root) error {
			return root.Rename(path.Join(partial, manifestTemp), path.Join(partial, manifestName))
		}},
		{"sync the manifest's name", func(root *os.Root) error { return syncFolder(root, partial) }},
	}
}

// naming makes it a backup. What it continues is looked at last of all: to make the files durable may
// have taken minutes, in which another host can have deleted it.
func (p *Partial) naming(m *Manifest) []step {
	return []step{
		{"look at its parent", func(root *os.Root) error { return p.checkParent(root, *m) }},
		{"name the backup", func(root *os.Root) error { return root.Rename(p.path(), p.loc.String()) }},
		{"sync the backup's name", func(root *os.Root) error { return syncUp(root, p.loc.folder()) }},
	}
}

// checkParent makes sure that what an incremental continues is still there. The manifest is opened: a
// network file system then asks its server, and does not go by what it remembers.
func (p *Partial) checkParent(root *os.Root, m Manifest) error {
	if m.Parent == "" {
		return nil
	}
	parent := p.loc
	parent.ID = m.Parent
	err := inFolder(root, parent.String(), func(dir *os.Root) error {
		f, err := openRegular(dir, manifestName)
		if err == nil {
			closeQuietly(f)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return errChain(m, "%w", err)
	}
	return err
}

// syncFiles makes every file of the folder durable, named in the manifest or not.
func syncFiles(dir *os.Root) error {
	entries, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, err := lstatRegular(dir, e.Name()); err != nil {
			return err
		}
		if err := syncFile(dir, e.Name()); err != nil {
			return err
		}
	}
	return nil
}

// complete fills in what Commit promises and checks the manifest as a reader will.
func (p *Partial) complete(dir *os.Root, m *Manifest) error {
	m.Version = ManifestVersion
	if m.FinishedAt.IsZero() {
		m.FinishedAt = time.Now().UTC()
	}
	if err := m.measure(dir); err != nil {
		return err
	}
	if err := m.check(p.loc); err != nil {
		return internalError(err)
	}
	return m.checkFiles(dir)
}

// measure fills in the sizes of the disks' files.
func (m *Manifest) measure(dir *os.Root) error {
	for i := range m.Disks {
		d := &m.Disks[i]
		if err := checkFile(d.File); err != nil {
			return err
		}
		fi, err := lstatRegular(dir, d.File)
		if err != nil {
			return err
		}
		d.FileBytes, d.StoredBytes = fi.Size(), storedBytes(fi)
	}
	return nil
}

// storedBytes returns what a file takes on the repository; its length where the file system does not
// count blocks.
func storedBytes(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Blocks > 0 {
		return st.Blocks * blockUnit
	}
	return fi.Size()
}

func writeManifest(dir *os.Root, m Manifest) error {
	data, err := m.encode()
	if err != nil {
		return internalError(err)
	}
	if err := dir.Remove(manifestTemp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := writeNew(context.Background(), dir, manifestTemp, bytes.NewReader(data)); err != nil {
		return err
	}
	return syncFile(dir, manifestTemp)
}

func inFolder(root *os.Root, folder string, f func(*os.Root) error) error {
	dir, err := openFolder(root, folder)
	if err != nil {
		return err
	}
	defer closeQuietly(dir)
	return f(dir)
}
