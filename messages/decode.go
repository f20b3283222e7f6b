package messages

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"unicode/utf8"
)

// Decode reads one command. Whatever is wrong with it comes back as an *Error; the header is
// returned as far as it could be read, so that the refusal can name the job. Its Type and JobID are
// "" where the command's are not a known type and a ULID: the event that answers can hold them.
func Decode(data []byte) (Command, Header, error) {
	var h Header
	err := json.Unmarshal(data, &h)
	claimed, cmd := h.Type, newCommand(h.Type)
	if cmd == nil {
		h.Type = ""
	}
	if CheckID("job_id", h.JobID) != nil {
		h.JobID = ""
	}
	if h.Version > Version {
		// Judged before its fields: a newer command may have some that are unknown here.
		return nil, h, Errorf(CodeUnsupportedVersion, "version %d is newer than %d", h.Version, Version)
	}
	if err != nil {
		return nil, h, Errorf(CodeInvalidMessage, "not a JSON command: %w", err)
	}
	if cmd == nil {
		return nil, h, Errorf(CodeInvalidMessage, "unknown type %q", claimed)
	}
	if err := strictUnmarshal(data, cmd); err != nil {
		return nil, h, EnsureCode(CodeInvalidMessage, err)
	}
	if err := checkExact(data); err != nil {
		return nil, h, EnsureCode(CodeInvalidMessage, err)
	}
	if err := cmd.Validate(); err != nil {
		return nil, h, err
	}
	return cmd, h, nil
}

// Encode checks a command and writes it.
func Encode(cmd Command) ([]byte, error) {
	if err := cmd.Validate(); err != nil {
		return nil, err
	}
	data, err := json.Marshal(cmd)
	return data, EnsureCode(CodeInvalidMessage, err)
}

func newCommand(t Type) Command {
	switch t {
	case TypeTake:
		return &TakeBackup{}
	case TypeRestore:
		return &RestoreBackup{}
	case TypeVerify:
		return &VerifyBackup{}
	case TypeDelete:
		return &DeleteBackup{}
	case TypeRekey:
		return &RekeyBackup{}
	case TypeConsolidate:
		return &ConsolidateBackup{}
	case TypeList:
		return &ListBackups{}
	}
	return nil
}

// strictUnmarshal reads exactly one JSON value and refuses fields that v does not have.
func strictUnmarshal(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the command")
	}
	return nil
}

var keyPattern = regexp.MustCompile(`^[a-z_]+$`)

// checkExact refuses what encoding/json forgives: bytes that are not UTF-8 (it replaces them), a
// key given twice (the last one wins), and a key in another case than the contract's, whose keys
// are all lower case. It is for data that strictUnmarshal has taken, and so nests no deeper than
// the contract's types.
func checkExact(data []byte) error {
	if !utf8.Valid(data) {
		return errors.New("the command is not UTF-8")
	}
	return checkKeys(json.NewDecoder(bytes.NewReader(data)))
}

// checkKeys looks through the next value of d.
func checkKeys(d *json.Decoder) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	seen := map[string]bool{}
	for d.More() {
		if open == '{' {
			t, err := d.Token()
			if err != nil {
				return err
			}
			key, _ := t.(string)
			if !keyPattern.MatchString(key) {
				return Errorf(CodeInvalidMessage, "unknown field %q: fields are lower case", key)
			}
			if seen[key] {
				return Errorf(CodeInvalidMessage, "field %q is given twice", key)
			}
			seen[key] = true
		}
		if err := checkKeys(d); err != nil {
			return err
		}
	}
	_, err = d.Token() // the closing bracket
	return err
}
