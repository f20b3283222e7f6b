package repository

import (
	"context"
	"os"
	"path"
)

// Rewrite replaces the backup's manifest, durably: after a crash the backup has the old one or the new
// one. It is for what changes about a backup while its data stay: who can open it. What the files take
// on the repository is measured again. Fields that this program does not know are lost.
func (b *Backup) Rewrite(ctx context.Context, m Manifest) error {
	what := "rewrite the manifest of " + b.loc.String()
	m, err := call(ctx, b.r, long, what, func(ctx context.Context, root *os.Root) (Manifest, error) {
		m.Disks = append([]Disk(nil), m.Disks...)
		for _, s := range b.rewriteSteps(&m) {
			if err := ctx.Err(); err != nil {
				return m, err
			}
			if err := s.run(root); err != nil {
				return m, writeError(what+": "+s.name, err)
			}
		}
		return m, nil
	})
	if err == nil {
		b.Manifest = m
	}
	return err
}

func (b *Backup) rewriteSteps(m *Manifest) []step {
	folder := b.loc.String()
	return []step{
		{"write the manifest", func(root *os.Root) error {
			return inFolder(root, folder, func(dir *os.Root) error {
				if err := m.measure(dir); err != nil {
					return err
				}
				if err := m.check(b.loc); err != nil {
					return internalError(err)
				}
				return writeManifest(dir, *m)
			})
		}},
		{"name the manifest", func(root *os.Root) error {
			return root.Rename(path.Join(folder, manifestTemp), path.Join(folder, manifestName))
		}},
		{"sync the manifest's name", func(root *os.Root) error { return syncFolder(root, folder) }},
	}
}
