// Package flagfile lets a program's flags be set in a YAML file, strictly: a key that is no flag
// is refused, because a misspelt encrypt must not give a backup in the clear.
package flagfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/alecthomas/kong"
	kongyaml "github.com/alecthomas/kong-yaml"
	"gopkg.in/yaml.v3"
)

// Option makes a kong.ConfigFlag read its file, and reads the files among standard that exist. A
// flag wins over its environment variable, that over the flag's file, and that over standard.
//
// A key is the name of a flag; below the name of a command it holds for that command alone.
func Option(standard ...string) kong.Option {
	return kong.OptionFunc(func(k *kong.Kong) error {
		if err := kong.Configuration(load).Apply(k); err != nil {
			return err
		}
		for _, path := range standard {
			r, err := k.LoadConfig(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if err := kong.Resolvers(r).Apply(k); err != nil {
				return err
			}
		}
		return nil
	})
}

// file is the content of a YAML file. The embedded resolver finds what stands below a command's
// name; file adds what holds for every command, and gives way to the environment.
type file struct {
	kong.Resolver
	name string
	keys map[string]any
}

func load(r io.Reader) (kong.Resolver, error) {
	f := &file{name: "configuration", keys: map[string]any{}}
	if named, ok := r.(interface{ Name() string }); ok {
		f.name = named.Name()
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if err := yaml.Unmarshal(data, &f.keys); err != nil {
		return nil, fmt.Errorf("%s: %w", f.name, err)
	}
	f.Resolver, err = kongyaml.Loader(bytes.NewReader(data))
	return f, err
}

// Resolve implements kong.Resolver.
func (f *file) Resolve(ctx *kong.Context, parent *kong.Path, flag *kong.Flag) (any, error) {
	for _, name := range flag.Envs {
		if _, ok := os.LookupEnv(name); ok {
			return nil, nil
		}
	}
	if v, err := f.Resolver.Resolve(ctx, parent, flag); v != nil || err != nil {
		return v, err
	}
	return f.keys[flag.Name], nil
}

// Validate implements kong.Resolver: it refuses keys that are neither a flag nor a command with flags.
func (f *file) Validate(model *kong.Application) error {
	known := settable(model.Flags)
	commands := map[string]map[string]bool{}
	for _, node := range model.Children {
		commands[node.Name] = settable(node.Flags)
		maps.Copy(known, commands[node.Name])
	}
	for _, key := range slices.Sorted(maps.Keys(f.keys)) {
		section, isMap := f.keys[key].(map[string]any)
		flags, isCommand := commands[key]
		switch {
		case isCommand && isMap:
			for _, sub := range slices.Sorted(maps.Keys(section)) {
				if !flags[sub] {
					return fmt.Errorf("%s: %s has no %s", f.name, key, sub)
				}
			}
		case !known[key]:
			return fmt.Errorf("%s: unknown key %s", f.name, key)
		}
	}
	return nil
}

// settable names the flags that a file can set: not those that kong acts on before it reads one.
func settable(flags []*kong.Flag) map[string]bool {
	names := map[string]bool{}
	for _, f := range flags {
		switch f.Target.Interface().(type) {
		case kong.ConfigFlag, kong.VersionFlag:
		default:
			names[f.Name] = f.Name != "help"
		}
	}
	return names
}
