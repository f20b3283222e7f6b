package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/invopop/jsonschema"

	"github.com/nasfleet/nasfleet/messages"
)

// commands are decoded strictly; a schema of one refuses what is unknown.
func commands() []any {
	return []any{
		messages.TakeBackup{}, messages.RestoreBackup{}, messages.VerifyBackup{}, messages.DeleteBackup{}, messages.RekeyBackup{}, messages.ConsolidateBackup{}, messages.ListBackups{},
	}
}

// requests are decoded strictly too.
func requests() []any { return []any{messages.ControlRequest{}} }

// reports are what comes back. They grow: a schema of one leaves alone what is unknown.
func reports() []any {
	return []any{messages.Event{}, messages.Progress{}, messages.HostInfo{}, messages.CatalogEntry{}, messages.ZoneSettings{}, messages.KeptPassphrase{}, messages.ControlReply{}}
}

const messagesPath = "github.com/nasfleet/nasfleet/messages"

// generate returns the schemas by file name. source is the folder of package messages.
func generate(source string) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, set := range []struct {
		values []any
		strict bool
	}{{commands(), true}, {requests(), true}, {reports(), false}} {
		g, err := newGenerator(source, set.strict)
		if err != nil {
			return nil, err
		}
		for _, v := range set.values {
			name := reflect.TypeOf(v).Name()
			data, err := encode(g.schema(v))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			files[name+".schema.json"] = data
		}
	}
	return files, nil
}

type generator struct {
	reflector jsonschema.Reflector
	// enums holds the constants of each string type of package messages.
	enums  map[string][]any
	strict bool
}

func newGenerator(source string, strict bool) (*generator, error) {
	enums, err := constants(source)
	if err != nil {
		return nil, err
	}
	g := &generator{enums: enums, strict: strict}
	g.reflector = jsonschema.Reflector{
		Anonymous:                 true,
		ExpandedStruct:            true,
		AllowAdditionalProperties: !strict,
		Mapper:                    g.mapType,
	}
	if err := g.reflector.AddGoComments(messagesPath, source, jsonschema.WithFullComment()); err != nil {
		return nil, err
	}
	// The library keys a comment by where source lies seen from here; only the last element counts.
	comments := make(map[string]string, len(g.reflector.CommentMap))
	for key, text := range g.reflector.CommentMap {
		comments[key[strings.LastIndexByte(key, '/')+1:]] = strings.Join(strings.Fields(text), " ")
	}
	g.reflector.CommentMap = nil
	g.reflector.LookupComment = func(t reflect.Type, field string) string { return comment(comments, t, field) }
	return g, nil
}

// comment finds a type's comment, or a field's; a field that has none takes its type's.
func comment(comments map[string]string, t reflect.Type, field string) string {
	if t.PkgPath() != messagesPath {
		return ""
	}
	name := filepath.Base(messagesPath) + "." + t.Name()
	if field == "" {
		return comments[name]
	}
	if text := comments[name+"."+field]; text != "" {
		return text
	}
	if f, ok := t.FieldByName(field); ok {
		return comment(comments, f.Type, "")
	}
	return ""
}

func (g *generator) schema(v any) *jsonschema.Schema {
	s := g.reflector.Reflect(v)
	s.Title = reflect.TypeOf(v).Name()
	if g.strict {
		constrain(s)
	}
	return s
}

// mapType gives the schemas of the types whose JSON is not what reflection sees.
func (g *generator) mapType(t reflect.Type) *jsonschema.Schema {
	switch {
	case t == reflect.TypeFor[messages.Details]():
		return g.details()
	case t == reflect.TypeFor[messages.Quiesce]():
		return &jsonschema.Schema{Enum: slices.Concat(g.enums[t.Name()], []any{true, false}), Default: string(messages.QuiesceOff)}
	case t.PkgPath() == messagesPath && t.Kind() == reflect.String && len(g.enums[t.Name()]) > 0:
		return &jsonschema.Schema{Type: "string", Enum: g.enums[t.Name()]}
	}
	return nil
}

// constants reads the string constants of each named type, in the order of the source.
func constants(source string) (map[string][]any, error) {
	names, err := filepath.Glob(filepath.Join(source, "*.go"))
	if err != nil {
		return nil, err
	}
	values := map[string][]any{}
	for _, name := range names {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			return nil, err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || len(spec.Values) != 1 {
				return true
			}
			typ, isNamed := spec.Type.(*ast.Ident)
			text, isLiteral := spec.Values[0].(*ast.BasicLit)
			if isNamed && isLiteral && text.Kind == token.STRING {
				s, _ := strconv.Unquote(text.Value) // the parser took it
				values[typ.Name] = append(values[typ.Name], s)
			}
			return true
		})
	}
	return values, nil
}

func encode(s *jsonschema.Schema) ([]byte, error) {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, err
	}
	// For people: the library escapes what only matters within HTML.
	for escaped, plain := range map[string]string{`\u003c`: "<", `\u003e`: ">", `\u0026`: "&"} {
		data = bytes.ReplaceAll(data, []byte(escaped), []byte(plain))
	}
	return append(data, '\n'), nil
}
