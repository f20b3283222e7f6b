package messages

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
)

// Decode reads one command. Whatever is wrong with it comes back as an *Error; the header is
// returned as far as it could be read, so that the refusal can name the job.
func Decode(data []byte) (Command, Header, error) {
	var h Header
	if err := json.Unmarshal(data, &h); err != nil {
		return nil, h, Errorf(CodeInvalidMessage, "not a JSON command: %w", err)
	}
	if h.Version > Version {
		// Judged before its fields: a newer command may have some that are unknown here.
		return nil, h, Errorf(CodeUnsupportedVersion, "version %d is newer than %d", h.Version, Version)
	}
	cmd := newCommand(h.Type)
	if cmd == nil {
		return nil, h, Errorf(CodeInvalidMessage, "unknown type %q", h.Type)
	}
	if err := strictUnmarshal(data, cmd); err != nil {
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
	return json.Marshal(cmd)
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
