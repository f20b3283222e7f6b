package repository

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"

	"github.com/nasfleet/nasfleet/messages"
)

// Dependent is an incremental that cannot be restored without another backup.
type Dependent struct {
	ID         string `json:"id"`
	Parent     string `json:"parent"`
	Zone       string `json:"zone"`
	Host       string `json:"host"`
	Checkpoint string `json:"checkpoint"`
}

// Dependents returns the incrementals that continue a backup, directly or not, each before the one
// that it continues itself. They count as such even where they are damaged, as long as their
// manifest can be read; the backup need not be there.
func (r *Repository) Dependents(ctx context.Context, ref messages.BackupRef) ([]Dependent, error) {
	loc := locationOf(ref)
	if err := loc.check(); err != nil {
		return nil, err
	}
	what := "look for what needs " + loc.String()
	all, err := call(ctx, r, long, what, func(ctx context.Context, root *os.Root) ([]Dependent, error) { return parents(ctx, root, loc) })
	if err != nil {
		return nil, readError(what, err)
	}
	var found []Dependent
	for level := []string{loc.ID}; len(level) > 0; {
		var next []string
		for _, d := range all {
			if slices.Contains(level, d.Parent) && !slices.ContainsFunc(found, func(f Dependent) bool { return f.ID == d.ID }) {
				found = append(found, d)
				next = append(next, d.ID)
			}
		}
		level = next
	}
	slices.Reverse(found)
	return found, nil
}

// parents reads what the manifests beside a backup say of the parents of theirs.
func parents(ctx context.Context, root *os.Root, loc Location) ([]Dependent, error) {
	entries, err := readFolder(root, loc.folder())
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotFolder) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Dependent
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if messages.CheckID("backup id", e.Name()) != nil || e.Name() == loc.ID {
			continue
		}
		d, err := parentOf(root, path.Join(loc.folder(), e.Name()))
		switch {
		case err == nil && d.ID == e.Name() && d.Parent != "":
			all = append(all, d)
		case unreadable(err):
			return nil, err
		}
	}
	return all, nil
}

func parentOf(root *os.Root, folder string) (d Dependent, err error) {
	err = inFolder(root, folder, func(dir *os.Root) error {
		data, err := readLimited(dir, manifestName, maxManifestBytes)
		if err != nil {
			return err
		}
		return json.Unmarshal(data, &d)
	})
	return d, err
}

// unreadable tells a repository that cannot be read from a folder that is no backup. Not to know what
// needs a backup is no reason to delete it.
func unreadable(err error) bool {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	return err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errNotFolder) && !errors.Is(err, errNotRegular) &&
		!errors.Is(err, errTooBig) && !errors.As(err, &syntax) && !errors.As(err, &kind)
}
