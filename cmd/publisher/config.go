package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"reflect"

	"github.com/alecthomas/kong"
	kongyaml "github.com/alecthomas/kong-yaml"
	"gopkg.in/yaml.v3"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
)

func newParser(c *cli, stdout, stderr io.Writer) (*kong.Kong, error) {
	return kong.New(c,
		kong.Name("publisher"), kong.Description(description), kong.Writers(stdout, stderr),
		kong.Configuration(loadConfig), kong.DefaultEnvars("NASFLEET"),
		kong.Vars{"default_nats": bus.DefaultURL},
		kong.NamedMapper("quiesce", kong.MapperFunc(decodeQuiesce)),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
	)
}

// config is a YAML file of settings. kong-yaml finds what stands below a command's name; config
// adds what holds for every command, gives way to the environment, and refuses a key that no
// command has, because a misspelt encrypt must not give a backup in the clear.
type config struct {
	kong.Resolver
	keys map[string]any
}

func loadConfig(r io.Reader) (kong.Resolver, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	c := &config{keys: map[string]any{}}
	if err := yaml.Unmarshal(data, &c.keys); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	c.Resolver, err = kongyaml.Loader(bytes.NewReader(data))
	return c, err
}

// Resolve implements kong.Resolver.
func (c *config) Resolve(ctx *kong.Context, parent *kong.Path, flag *kong.Flag) (any, error) {
	for _, name := range flag.Envs {
		if _, ok := os.LookupEnv(name); ok {
			return nil, nil
		}
	}
	if v, err := c.Resolver.Resolve(ctx, parent, flag); v != nil || err != nil {
		return v, err
	}
	return c.keys[flag.Name], nil
}

// Validate implements kong.Resolver: it refuses keys that are neither a flag nor a command with flags.
func (c *config) Validate(model *kong.Application) error {
	known := map[string]bool{}
	commands := map[string]map[string]bool{}
	for _, f := range model.Flags {
		known[f.Name] = true
	}
	for _, node := range model.Children {
		commands[node.Name] = map[string]bool{}
		for _, f := range node.Flags {
			known[f.Name], commands[node.Name][f.Name] = true, true
		}
	}
	for key, value := range c.keys {
		section, isMap := value.(map[string]any)
		flags, isCommand := commands[key]
		switch {
		case isCommand && isMap:
			for sub := range section {
				if !flags[sub] {
					return fmt.Errorf("configuration: %s has no %s", key, sub)
				}
			}
		case !known[key]:
			return fmt.Errorf("configuration: unknown key %s", key)
		}
	}
	return nil
}

// decodeQuiesce reads the value of --quiesce, which may be left out: best_effort. A word that
// follows belongs to it, because the command has no other arguments.
func decodeQuiesce(ctx *kong.DecodeContext, target reflect.Value) error {
	if !ctx.Scan.Peek().IsValue() {
		target.SetString(string(messages.QuiesceBestEffort))
		return nil
	}
	target.SetString(fmt.Sprint(ctx.Scan.Pop().Value)) // a bool where it comes from a file
	return nil
}
