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
	everyFlag(model.Node, known)
	for _, key := range slices.Sorted(maps.Keys(f.keys)) {
		if section, command := f.section(model.Node, key, f.keys[key]); command != nil {
			if err := f.validate(command, section); err != nil {
				return err
			}
		} else if !known[key] {
			return fmt.Errorf("%s: unknown key %s", f.name, key)
		}
	}
	return nil
}

// validate refuses keys of a command's section that are neither its flags nor commands below it.
func (f *file) validate(command *kong.Node, section map[string]any) error {
	flags := settable(command.Flags)
	for _, key := range slices.Sorted(maps.Keys(section)) {
		if below, sub := f.section(command, key, section[key]); sub != nil {
			if err := f.validate(sub, below); err != nil {
				return err
			}
		} else if !flags[key] {
			return fmt.Errorf("%s: %s has no %s", f.name, command.Name, key)
		}
	}
	return nil
}

// section returns the command of that name below a node, and its settings; nil where the key
// names none, or holds no settings.
func (f *file) section(node *kong.Node, key string, value any) (map[string]any, *kong.Node) {
	settings, ok := value.(map[string]any)
	for _, child := range node.Children {
		if ok && child.Name == key {
			return settings, child
		}
	}
	return nil, nil
}

// everyFlag adds the flags of all commands below a node.
func everyFlag(node *kong.Node, known map[string]bool) {
	for _, child := range node.Children {
		maps.Copy(known, settable(child.Flags))
		everyFlag(child, known)
	}
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
