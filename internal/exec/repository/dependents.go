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

// Sibling is what the manifest of a backup says of its place among the others of its VM. Of one that makes
// no sense it is the ID alone, which is the folder's name; zone and host are empty where they are no names.
type Sibling struct {
	ID         string `json:"id"`
	Parent     string `json:"parent"`
	Zone       string `json:"zone"`
	Host       string `json:"host"`
	Checkpoint string `json:"checkpoint"`
}

// Siblings returns the backups that lie beside one, whether that is there or not. A manifest that cannot be
// read, other than one that makes no sense, is an error.
func (r *Repository) Siblings(ctx context.Context, ref messages.BackupRef) ([]Sibling, error) {
	loc := locationOf(ref)
	if err := loc.check(); err != nil {
		return nil, err
	}
	what := "look at what lies beside " + loc.String()
	all, err := call(ctx, r, long, what, func(ctx context.Context, root *os.Root) ([]Sibling, error) { return siblings(ctx, root, loc) })
	if err != nil {
		return nil, readError(what, err)
	}
	return all, nil
}

// Dependents returns the incrementals that continue a backup, directly or not, each before the one
// that it continues itself. They count as such even where they are damaged, as long as their
// manifest can be read; the backup need not be there.
func (r *Repository) Dependents(ctx context.Context, ref messages.BackupRef) ([]Sibling, error) {
	all, err := r.Siblings(ctx, ref)
	if err != nil {
		return nil, err
	}
	var found []Sibling
	for level := []string{ref.ID}; len(level) > 0; {
		var next []string
		for _, d := range all {
			if slices.Contains(level, d.Parent) && !slices.ContainsFunc(found, func(f Sibling) bool { return f.ID == d.ID }) {
				found = append(found, d)
				next = append(next, d.ID)
			}
		}
		level = next
	}
	slices.Reverse(found)
	return found, nil
}

func siblings(ctx context.Context, root *os.Root, loc Location) ([]Sibling, error) {
	entries, err := readFolder(root, loc.folder())
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotFolder) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Sibling
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if messages.CheckID("backup id", e.Name()) != nil || e.Name() == loc.ID {
			continue
		}
		s, err := siblingOf(root, loc.folder(), e.Name())
		if unreadable(err) {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// siblingOf reads the manifest of a backup, whatever else may be wrong with it. The ID alone is known with an
// error.
func siblingOf(root *os.Root, folder, id string) (Sibling, error) {
	var s Sibling
	err := inFolder(root, path.Join(folder, id), func(dir *os.Root) error {
		data, err := readLimited(dir, manifestName, maxManifestBytes)
		if err != nil {
			return err
		}
		return json.Unmarshal(data, &s)
	})
	if err != nil || s.ID != id {
		return Sibling{ID: id}, err
	}
	if errors.Join(messages.CheckLabel("zone", s.Zone), messages.CheckLabel("host", s.Host)) != nil {
		s.Zone, s.Host = "", ""
	}
	return s, nil
}

// unreadable tells a repository that cannot be read from a folder that is no backup. Not to know what
// needs a backup is no reason to delete it.
func unreadable(err error) bool {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	return err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errNotFolder) && !errors.Is(err, errNotRegular) &&
		!errors.Is(err, errTooBig) && !errors.As(err, &syntax) && !errors.As(err, &kind)
}
