package fleet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"gopkg.in/yaml.v3"
)

// Target is one entry of a targets file: what is backed up where, and what is different about it.
type Target struct {
	Zone        string   `yaml:"zone"`
	Host        string   `yaml:"host"`
	VM          string   `yaml:"vm"`
	Images      []string `yaml:"images"`
	ImageFormat string   `yaml:"image-format"`
	JobID       string   `yaml:"job-id"`
	// Overrides are settings by the names of their flags; the rest is as for all the others.
	Overrides map[string]any `yaml:"overrides"`
}

// LoadTargets reads a list of targets (YAML, and so JSON too) and makes the job of each. Zone and
// host of src hold for the targets that name none. The first target that cannot be obeyed refuses
// the file: nothing of it is published.
func LoadTargets(path string, src Source, s TakeSettings, r *Passphrases) ([]*Job, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, &Error{Class: Usage, Err: fmt.Errorf("targets: %w", err)}
	}
	return parseTargets(data, src, s, r)
}

func parseTargets(data []byte, src Source, s TakeSettings, r *Passphrases) ([]*Job, error) {
	if src.VM != "" || len(src.Images) > 0 || src.ImageFormat != "" || src.JobID != "" {
		return nil, usagef("a targets file names the VMs, images and job ids itself")
	}
	var targets []Target
	if err := strictYAML(data, &targets); err != nil {
		return nil, usagef("targets: %w", err)
	}
	if len(targets) == 0 {
		return nil, usagef("the targets file holds no target")
	}
	jobs := make([]*Job, len(targets))
	ids := make(map[string]int, len(targets))
	for i, t := range targets {
		job, err := t.job(src, s, r)
		if err != nil {
			return nil, atTarget(i, err)
		}
		job.fill.target = i + 1
		if first, ok := ids[job.ID()]; ok {
			return nil, atTarget(i, usagef("it has the job id of target %d", first+1))
		}
		ids[job.ID()] = i
		jobs[i] = job
	}
	return jobs, nil
}

func (t Target) job(src Source, s TakeSettings, r *Passphrases) (*Job, error) {
	s = s.clone()
	if len(t.Overrides) > 0 {
		data, err := yaml.Marshal(t.Overrides)
		if err != nil {
			return nil, usagef("overrides: %w", err)
		}
		if err := strictYAML(data, &s); err != nil {
			return nil, usagef("overrides: %w", err)
		}
	}
	at := Source{Zone: t.Zone, Host: t.Host, VM: t.VM, Images: t.Images, ImageFormat: t.ImageFormat, JobID: t.JobID}
	if at.Zone == "" {
		at.Zone = src.Zone
	}
	if at.Host == "" {
		at.Host = src.Host
	}
	return TakeJob(at, s, r)
}

// strictYAML reads exactly one document and refuses keys that v does not have.
func strictYAML(data []byte, v any) error {
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(v); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return errors.New("there is more than one document")
	}
	return nil
}

func atTarget(i int, err error) error {
	return &Error{Class: ClassOf(err), Hint: HintOf(err), Err: fmt.Errorf("target %d: %w", i+1, err)}
}
