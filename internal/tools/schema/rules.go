package main

import (
	"encoding/json"
	"reflect"
	"strconv"

	"github.com/invopop/jsonschema"

	"github.com/nasfleet/nasfleet/messages"
)

// Patterns are written for both ECMA 262, which JSON Schema names, and Go. They are no stricter
// than package messages, whose word is the last one.
const (
	ulidPattern      = `^[0-7][0-9A-HJKMNP-TV-Z]{25}$`
	labelPattern     = `^[a-z0-9-]+$`
	vmPattern        = `^[^-./\x00-\x1f\x7f-\x9f][^/\x00-\x1f\x7f-\x9f]*$`
	absolutePattern  = `^/`
	belowPattern     = `^([^/]|$)`
	noOptionPattern  = `^([^-]|$)`
	sealedPattern    = `^(sealed1\.[A-Za-z0-9._-]+)?$`
	revisionPattern  = `^([0-7][0-9A-HJKMNP-TV-Z]{25})?$`
	rbdPattern       = `^[^/\x00-\x1f\x7f-\x9f]+/[^/\x00-\x1f\x7f-\x9f]+$`
	bandwidthPattern = `^[0-9]+$`
)

const (
	maxName     = 63
	maxVM       = 200
	maxPath     = 4095
	maxAttempts = 100
	maxTimeout  = 30 * 24 * 60 * 60
)

// constrain adds to a command's schema what its Go types cannot say.
func constrain(s *jsonschema.Schema) {
	setField(s, "type", func(p *jsonschema.Schema) { p.Enum, p.Const = nil, s.Title })
	for _, object := range s.Definitions {
		constrainFields(object)
	}
	constrainFields(s)
	switch s.Title {
	case string(messages.TypeTake):
		s.OneOf = []*jsonschema.Schema{{Required: []string{"vm"}}, {Required: []string{"images"}}}
		setField(s, "images", func(p *jsonschema.Schema) { p.MinItems = number(1) })
		setField(s, "mode", func(p *jsonschema.Schema) { p.Default = string(messages.ModeFull) })
	case string(messages.TypeRestore):
		asFiles := &jsonschema.Schema{Required: []string{"to_dir"}, Properties: jsonschema.NewProperties()}
		for _, name := range []string{"to_vm", "to_rbd"} {
			asFiles.Properties.Set(name, jsonschema.FalseSchema)
		}
		over := func(target string, others ...string) *jsonschema.Schema {
			over := &jsonschema.Schema{Required: []string{target}, Properties: jsonschema.NewProperties()}
			for _, name := range append(others, "to_dir", "format") {
				over.Properties.Set(name, jsonschema.FalseSchema)
			}
			over.Properties.Set("define", &jsonschema.Schema{Const: false})
			return over
		}
		s.OneOf = []*jsonschema.Schema{asFiles, over("to_vm", "to_rbd"), over("to_rbd", "to_vm", "disks")}
		setField(s, "to_rbd", func(p *jsonschema.Schema) {
			p.MinProperties, p.PropertyNames = number(1), &jsonschema.Schema{Pattern: labelPattern, MaxLength: number(maxName)}
			p.AdditionalProperties = &jsonschema.Schema{Type: "string", Pattern: rbdPattern, MaxLength: number(maxPath)}
		})
		setField(s, "details", onlyReading)
	case string(messages.TypeVerify):
		setField(s, "details", onlyReading)
	case string(messages.TypeRekey):
		setField(s, "details", onlyKeys)
	}
	if image, ok := s.Definitions["Image"]; ok {
		path, _ := image.Properties.Get("path")
		s.Definitions["Image"] = &jsonschema.Schema{Description: image.Description, OneOf: []*jsonschema.Schema{path, image}}
		image.Description = ""
	}
	if repository, ok := s.Definitions["Repository"]; ok {
		ifDir := jsonschema.NewProperties()
		ifDir.Set("type", &jsonschema.Schema{Const: messages.RepositoryDir})
		then := jsonschema.NewProperties()
		then.Set("address", &jsonschema.Schema{Pattern: absolutePattern})
		then.Set("mount_options", &jsonschema.Schema{Const: ""})
		repository.If = &jsonschema.Schema{Properties: ifDir}
		repository.Then = &jsonschema.Schema{Properties: then}
	}
}

// constrainFields applies the rules that go by a field's name.
func constrainFields(s *jsonschema.Schema) {
	text := func(pattern string, least, most uint64) func(*jsonschema.Schema) {
		return func(p *jsonschema.Schema) {
			p.Pattern, p.MaxLength = pattern, number(most)
			if least > 0 {
				p.MinLength = number(least)
			}
		}
	}
	vm := text(vmPattern, 1, maxVM)
	for name, rule := range map[string]func(*jsonschema.Schema){
		"version": func(p *jsonschema.Schema) { p.Minimum, p.Maximum = "1", json.Number(strconv.Itoa(messages.Version)) },
		"attempts": func(p *jsonschema.Schema) {
			p.Minimum, p.Maximum, p.Default = "0", json.Number(strconv.Itoa(maxAttempts)), messages.DefaultAttempts
		},
		"timeout":         func(p *jsonschema.Schema) { p.Minimum, p.Maximum = "0", json.Number(strconv.Itoa(maxTimeout)) },
		"bandwidth_limit": func(p *jsonschema.Schema) { p.Minimum = "0" },
		"job_id":          func(p *jsonschema.Schema) { p.Pattern = ulidPattern },
		"id":              func(p *jsonschema.Schema) { p.Pattern = ulidPattern },
		"vm":              vm,
		"to_vm":           vm,
		"path":            text(absolutePattern, 0, maxPath),
		"to_dir":          text(absolutePattern, 0, maxPath),
		"backup_path":     text(belowPattern, 0, maxPath),
		"address":         text(noOptionPattern, 1, maxPath),
		"mount_options":   text(noOptionPattern, 0, maxPath),
		"format":          func(p *jsonschema.Schema) { p.Enum = []any{"qcow2", "raw"} },
		"old_passphrase": func(p *jsonschema.Schema) {
			p.Pattern, p.MinLength = sealedPattern, number(1)
		},
		"old_revision":     func(p *jsonschema.Schema) { p.Pattern = revisionPattern },
		"chain_passphrase": func(p *jsonschema.Schema) { p.Pattern = sealedPattern },
		"chain_revision":   func(p *jsonschema.Schema) { p.Pattern = revisionPattern },
		"disks":            func(p *jsonschema.Schema) { text(labelPattern, 0, maxName)(p.Items) },
	} {
		setField(s, name, rule)
	}
	if s.Title == "" { // the repository's, not the command's
		setField(s, "type", text(noOptionPattern, 1, maxPath))
	}
}

func setField(s *jsonschema.Schema, name string, rule func(*jsonschema.Schema)) {
	if s.Properties == nil {
		return
	}
	if p, ok := s.Properties.Get(name); ok {
		rule(p)
	}
}

// details are a map of strings; null, for the map or for a value, means the default.
func (g *generator) details() *jsonschema.Schema {
	orNull := map[string]any{"type": []string{"string", "null"}}
	flag := func() *jsonschema.Schema {
		return &jsonschema.Schema{Enum: []any{"true", "false", nil}, Default: "false"}
	}
	s := &jsonschema.Schema{
		Extras:               map[string]any{"type": []string{"object", "null"}},
		AdditionalProperties: jsonschema.FalseSchema,
		Properties:           jsonschema.NewProperties(),
	}
	for _, d := range []struct {
		key, field string
		schema     *jsonschema.Schema
	}{
		{messages.DetailCompression, "Compression", flag()},
		{messages.DetailCompressionType, "CompressionType", &jsonschema.Schema{Enum: []any{messages.Zstd, messages.Zlib, nil}, Default: messages.Zstd}},
		{messages.DetailEncryption, "Encryption", flag()},
		{messages.DetailPassphrase, "Passphrase", &jsonschema.Schema{Pattern: sealedPattern, Extras: orNull}},
		{messages.DetailRevision, "Revision", &jsonschema.Schema{Pattern: revisionPattern, Extras: orNull}},
		{messages.DetailRecovery, "Recovery", &jsonschema.Schema{Pattern: sealedPattern, Extras: orNull}},
		{messages.DetailRecoveryRevision, "RecoveryRevision", &jsonschema.Schema{Pattern: revisionPattern, Extras: orNull}},
		{messages.DetailBandwidthLimit, "BandwidthLimit", &jsonschema.Schema{Pattern: bandwidthPattern, Default: "0", Extras: orNull}},
		{messages.DetailIntegrityCheck, "IntegrityCheck", flag()},
	} {
		d.schema.Description = g.reflector.LookupComment(reflect.TypeFor[messages.Details](), d.field)
		s.Properties.Set(d.key, d.schema)
	}
	encrypted, needs := jsonschema.NewProperties(), jsonschema.NewProperties()
	encrypted.Set(messages.DetailEncryption, &jsonschema.Schema{Const: "true"})
	needs.Set(messages.DetailPassphrase, &jsonschema.Schema{Type: "string", MinLength: number(1)})
	s.If = &jsonschema.Schema{Properties: encrypted, Required: []string{messages.DetailEncryption}}
	s.Then = &jsonschema.Schema{Properties: needs, Required: []string{messages.DetailPassphrase}}
	return s
}

// onlyReading leaves the details that go with a backup that exists.
func onlyReading(s *jsonschema.Schema) {
	for _, key := range []string{
		messages.DetailCompression, messages.DetailCompressionType, messages.DetailEncryption, messages.DetailIntegrityCheck,
		messages.DetailRecovery, messages.DetailRecoveryRevision,
	} {
		s.Properties.Delete(key)
	}
	s.If, s.Then = nil, nil
}

// onlyKeys leaves the details that a backup is opened with, of which the first is needed.
func onlyKeys(s *jsonschema.Schema) {
	for _, key := range []string{
		messages.DetailCompression, messages.DetailCompressionType, messages.DetailEncryption, messages.DetailIntegrityCheck,
		messages.DetailBandwidthLimit,
	} {
		s.Properties.Delete(key)
	}
	s.Required = []string{messages.DetailPassphrase}
	s.Extras = map[string]any{"type": "object"}
	p, _ := s.Properties.Get(messages.DetailPassphrase)
	p.MinLength, p.Extras = number(1), map[string]any{"type": "string"}
	s.If, s.Then = nil, nil
}

func number(n uint64) *uint64 { return &n }
