package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

type object = map[string]any

// validate checks a value against a schema, both as encoding/json reads them: the part of JSON
// Schema that the generated files use. A keyword it does not know is an error, so that none is
// passed over.
func validate(root, schema any, value any) error {
	if allowed, ok := schema.(bool); ok {
		if !allowed {
			return errors.New("not allowed here")
		}
		return nil
	}
	s := schema.(object)
	for keyword, arg := range s {
		if err := keywordHolds(root, s, keyword, arg, value); err != nil {
			return err
		}
	}
	return nil
}

func keywordHolds(root any, s object, keyword string, arg, value any) error {
	text, isText := value.(string)
	number, isNumber := value.(float64)
	list, isList := value.([]any)
	fields, isObject := value.(object)
	holds := true
	switch keyword {
	case "$schema", "$defs", "title", "description", "default", "then":
	case "$ref":
		name := strings.TrimPrefix(arg.(string), "#/$defs/")
		def, ok := root.(object)["$defs"].(object)[name]
		if !ok {
			return fmt.Errorf("no definition %s", name)
		}
		return validate(root, def, value)
	case "oneOf":
		matching := 0
		var all error
		for _, branch := range arg.([]any) {
			if err := validate(root, branch, value); err == nil {
				matching++
			} else {
				all = errors.Join(all, err)
			}
		}
		if matching != 1 {
			return fmt.Errorf("oneOf: %d of them match: %w", matching, all)
		}
	case "if":
		if validate(root, arg, value) == nil {
			return validate(root, s["then"], value)
		}
	case "type":
		holds = hasType(arg, value)
	case "const":
		holds = reflect.DeepEqual(arg, value)
	case "enum":
		holds = slices.ContainsFunc(arg.([]any), func(a any) bool { return reflect.DeepEqual(a, value) })
	case "pattern":
		holds = !isText || regexp.MustCompile(arg.(string)).MatchString(text)
	case "minLength":
		holds = !isText || utf8.RuneCountInString(text) >= int(arg.(float64))
	case "maxLength":
		holds = !isText || utf8.RuneCountInString(text) <= int(arg.(float64))
	case "minimum":
		holds = !isNumber || number >= arg.(float64)
	case "maximum":
		holds = !isNumber || number <= arg.(float64)
	case "minItems":
		holds = !isList || len(list) >= int(arg.(float64))
	case "minProperties":
		holds = !isObject || len(fields) >= int(arg.(float64))
	case "propertyNames":
		for name := range fields {
			if err := validate(root, arg, name); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	case "format":
		if arg != "date-time" {
			return fmt.Errorf("unknown format %v", arg)
		}
		_, err := time.Parse(time.RFC3339, text)
		holds = !isText || err == nil
	case "items":
		for i, item := range list {
			if err := validate(root, arg, item); err != nil {
				return fmt.Errorf("%d: %w", i, err)
			}
		}
	case "required":
		for _, name := range arg.([]any) {
			if _, ok := fields[name.(string)]; isObject && !ok {
				return fmt.Errorf("%s is missing", name)
			}
		}
	case "properties":
		for name, p := range arg.(object) {
			if v, ok := fields[name]; ok {
				if err := validate(root, p, v); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		}
	case "additionalProperties":
		known, _ := s["properties"].(object)
		for name, v := range fields {
			if _, ok := known[name]; ok {
				continue
			}
			if err := validate(root, arg, v); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	default:
		return fmt.Errorf("unknown keyword %s", keyword)
	}
	if !holds {
		return fmt.Errorf("%v does not hold %s %v", value, keyword, arg)
	}
	return nil
}

func hasType(arg, value any) bool {
	if several, ok := arg.([]any); ok {
		return slices.ContainsFunc(several, func(one any) bool { return hasType(one, value) })
	}
	switch v := value.(type) {
	case nil:
		return arg == "null"
	case bool:
		return arg == "boolean"
	case string:
		return arg == "string"
	case float64:
		return arg == "number" || arg == "integer" && v == float64(int64(v))
	case []any:
		return arg == "array"
	case object:
		return arg == "object"
	}
	return false
}

// validateJSON checks a text against the schema of a file.
func validateJSON(schema, data []byte) error {
	var s, v any
	if err := json.Unmarshal(schema, &s); err != nil {
		return err
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return err
	}
	return validate(s, s, v)
}
