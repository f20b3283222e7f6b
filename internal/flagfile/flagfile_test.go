package flagfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"

	"github.com/nasfleet/nasfleet/internal/flagfile"
)

type cli struct {
	Config  kong.ConfigFlag `env:"-"`
	Version kong.VersionFlag
	Level   string `default:"info"`
	Run     cmd    `cmd:""`
	Stop    cmd    `cmd:""`
	Zone    struct {
		Set  setCmd `cmd:""`
		Keys struct {
			Set setCmd `cmd:""`
		} `cmd:""`
	} `cmd:""`
}

type setCmd struct {
	Deep string
}

// Commands below commands have sections below sections; their flags hold at the top as well.
func TestNested(t *testing.T) {
	for content, want := range map[string]string{
		"zone: {set: {deep: a}}":                                  "a",
		"zone: {set: {deep: a}, keys: {set: {deep: b}}}\ndeep: c": "a",
		"zone: {keys: {set: {deep: b}}}\ndeep: c":                 "c",
	} {
		got, err := parse(t, write(t, content), "zone", "set")
		if err != nil || got.Zone.Set.Deep != want {
			t.Errorf("%s: %+v, %v", content, got.Zone.Set, err)
		}
	}
}

type cmd struct {
	ColdStart bool
	Name      string
	Size      int `default:"1"`
}

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func parse(t *testing.T, standard string, args ...string) (cli, error) {
	t.Helper()
	var c cli
	k, err := kong.New(&c, flagfile.Option(standard), kong.DefaultEnvars("FLAGFILE_TEST"), kong.Exit(func(int) { t.Error("exit") }))
	if err != nil {
		return c, err
	}
	_, err = k.Parse(args)
	return c, err
}

func TestPrecedence(t *testing.T) {
	standard := write(t, "level: debug\nsize: 2\nname: standard\nrun: {cold-start: true}\n")
	given := write(t, "name: given\nrun:\n  size: 3\nstop: {size: 9}\n")
	const missing = "/nowhere/c.yaml"
	for _, tt := range []struct {
		name, standard string
		args           []string
		env            map[string]string
		level          string
		want           cmd
	}{
		{"defaults", missing, []string{"run"}, nil, "info", cmd{Size: 1}},
		{"standard file", standard, []string{"run"}, nil, "debug", cmd{ColdStart: true, Name: "standard", Size: 2}},
		{"file given", standard, []string{"--config", given, "run"}, nil, "debug", cmd{ColdStart: true, Name: "given", Size: 3}},
		{"after the command", missing, []string{"run", "--config", given}, nil, "info", cmd{Name: "given", Size: 3}},
		{
			"environment", standard, []string{"--config", given, "run"},
			map[string]string{"FLAGFILE_TEST_SIZE": "4", "FLAGFILE_TEST_NAME": "", "FLAGFILE_TEST_COLD_START": "false"},
			"debug", cmd{Size: 4},
		},
		{
			"flags", standard, []string{"--config", given, "--level", "warn", "run", "--size", "5", "--cold-start=false"},
			map[string]string{"FLAGFILE_TEST_SIZE": "4", "FLAGFILE_TEST_LEVEL": "error"}, "warn", cmd{Name: "given", Size: 5},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			got, err := parse(t, tt.standard, tt.args...)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got.Run); d != "" || got.Level != tt.level {
				t.Errorf("level %s, %s", got.Level, d)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	for name, tt := range map[string]struct{ content, want string }{
		"unknown key":          {"sizes: 1", "unknown key sizes"},
		"unknown in a command": {"run: {sizes: 1}", "run has no sizes"},
		"in another command":   {"stop: {sizes: 1}", "stop has no sizes"},
		"prefixed by command":  {"run-size: 1", "unknown key run-size"},
		"unknown below":        {"zone: {set: {depe: 1}}", "set has no depe"},
		"unknown far below":    {"zone: {keys: {set: {size: 1}}}", "set has no size"},
		"no command below":     {"zone: {sett: {deep: 1}}", "zone has no sett"},
		"flag of the program":  {"run: {level: debug}", "run has no level"},
		"command as a value":   {"run: 3", "unknown key run"},
		"another file":         {"config: other.yaml", "unknown key config"},
		"version":              {"version: true", "unknown key version"},
		"help":                 {"run: {help: true}", "run has no help"},
		"given twice":          {"size: 1\nsize: 2", "already defined"},
		"no map":               {"[size]", "cannot unmarshal"},
		"not YAML":             {"run: [", "did not find"},
		"wrong kind":           {"size: many", "size"},
		"map for a value":      {"size: {of: 1}", "size"},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, tt.content)
			for _, standard := range []bool{false, true} {
				var err error
				if standard {
					_, err = parse(t, path, "run")
				} else {
					_, err = parse(t, "/nowhere/standard.yaml", "--config", path, "run")
				}
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("standard %v: %v", standard, err)
				}
			}
		})
	}
}

func TestFiles(t *testing.T) {
	if _, err := parse(t, "/nowhere/standard.yaml", "--config", "/nowhere/c.yaml", "run"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "/nowhere/c.yaml") {
		t.Errorf("missing: %v", err)
	}
	if _, err := parse(t, t.TempDir(), "run"); err == nil {
		t.Error("a folder was taken for a file")
	}
	for _, content := range []string{"", "# nothing\n", "size:\n"} {
		if got, err := parse(t, write(t, content), "run"); err != nil || got.Run.Size != 1 {
			t.Errorf("%q: %+v, %v", content, got.Run, err)
		}
	}
}
