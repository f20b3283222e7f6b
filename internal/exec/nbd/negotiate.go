package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// export is what the negotiation has found.
type export struct {
	size           int64
	flags          uint16
	minBlock       uint32
	preferredBlock uint32
	maxBlock       uint32
	structured     bool
	contexts       map[uint32]string // metadata contexts by the server's id
}

// negotiate takes a fresh connection to the transmission phase.
func negotiate(rw io.ReadWriter, o Options) (export, error) {
	e := export{minBlock: 1, preferredBlock: 4096, maxBlock: defaultMaxBlock, contexts: map[uint32]string{}}
	if len(o.Export) > maxString {
		return e, fmt.Errorf("export name of %d bytes is longer than %d", len(o.Export), maxString)
	}
	if err := greet(rw); err != nil {
		return e, err
	}
	n := negotiation{rw: rw, name: o.Export}
	err := n.option(optStructuredReply, nil, nil)
	var refused *optionError
	switch {
	case err == nil:
		e.structured = true
	case !errors.As(err, &refused):
		return e, err
	case len(o.MetaContexts) > 0:
		return e, fmt.Errorf("structured replies: %w", err)
	}
	if err := n.metaContexts(&e, o.MetaContexts); err != nil {
		return e, err
	}
	return e, n.goTransmit(&e)
}

// greet exchanges the first flags.
func greet(rw io.ReadWriter) error {
	var hello [18]byte
	if _, err := io.ReadFull(rw, hello[:]); err != nil {
		return fmt.Errorf("%w: no greeting: %w", ErrDisconnected, err)
	}
	if binary.BigEndian.Uint64(hello[0:]) != magicServer || binary.BigEndian.Uint64(hello[8:]) != magicOption {
		return protocolError("not the greeting of a newstyle NBD server")
	}
	flags := binary.BigEndian.Uint16(hello[16:])
	if flags&flagFixedNewstyle == 0 {
		return protocolError("not a fixed newstyle server")
	}
	answer := uint32(flagFixedNewstyle | flags&flagNoZeroes)
	if _, err := rw.Write(binary.BigEndian.AppendUint32(nil, answer)); err != nil {
		return fmt.Errorf("%w: %w", ErrDisconnected, err)
	}
	return nil
}

// optionError is the server's refusal of an option.
type optionError struct {
	option, reply uint32
	message       string
}

func (e *optionError) Error() string {
	s := fmt.Sprintf("the server refused option %d", e.option)
	// Section "Option reply types", errors.
	switch e.reply &^ repErrorBit {
	case 1:
		s += ": not supported"
	case 2:
		s += ": forbidden by policy"
	case 3:
		s += ": invalid"
	case 5:
		s += ": TLS required"
	case 6:
		s += ": no such export"
	case 7:
		s += ": shutting down"
	default:
		s += fmt.Sprintf(": error %d", e.reply&^repErrorBit)
	}
	if e.message != "" {
		s += fmt.Sprintf(" (%q)", e.message)
	}
	return s
}

type negotiation struct {
	rw   io.ReadWriter
	name string // of the export
}

// option sends an option and hands its informational replies to each, until the server's ACK.
func (n negotiation) option(option uint32, data []byte, each func(reply uint32, data []byte) error) error {
	req := binary.BigEndian.AppendUint64(nil, magicOption)
	req = binary.BigEndian.AppendUint32(req, option)
	req = binary.BigEndian.AppendUint32(req, uint32(len(data)))
	if _, err := n.rw.Write(append(req, data...)); err != nil {
		return fmt.Errorf("%w: %w", ErrDisconnected, err)
	}
	for range maxOptionReplies {
		reply, data, err := n.reply(option)
		switch {
		case err != nil:
			return err
		case reply&repErrorBit != 0:
			return &optionError{option, reply, string(data[:min(len(data), maxString)])}
		case reply == repAck:
			return nil
		case each == nil:
			return protocolError("reply %d to option %d", reply, option)
		}
		if err := each(reply, data); err != nil {
			return err
		}
	}
	return protocolError("endless replies to option %d", option)
}

func (n negotiation) reply(option uint32) (reply uint32, data []byte, err error) {
	var h [20]byte
	if _, err := io.ReadFull(n.rw, h[:]); err != nil {
		return 0, nil, fmt.Errorf("%w: %w", ErrDisconnected, err)
	}
	size := binary.BigEndian.Uint32(h[16:])
	switch {
	case binary.BigEndian.Uint64(h[0:]) != magicReply:
		return 0, nil, protocolError("bad magic in an option reply")
	case binary.BigEndian.Uint32(h[8:]) != option:
		return 0, nil, protocolError("reply to another option")
	case size > maxOptionReply:
		return 0, nil, protocolError("option reply of %d bytes", size)
	}
	data = make([]byte, size)
	if _, err := io.ReadFull(n.rw, data); err != nil {
		return 0, nil, fmt.Errorf("%w: %w", ErrDisconnected, err)
	}
	return binary.BigEndian.Uint32(h[12:]), data, nil
}

// metaContexts asks for metadata contexts; each one must be granted.
func (n negotiation) metaContexts(e *export, want []string) error {
	if len(want) == 0 {
		return nil
	}
	req := appendString(nil, n.name)
	req = binary.BigEndian.AppendUint32(req, uint32(len(want)))
	for _, w := range want {
		if len(w) > maxString {
			return fmt.Errorf("metadata context name of %d bytes is longer than %d", len(w), maxString)
		}
		req = appendString(req, w)
	}
	granted := map[string]bool{}
	err := n.option(optSetMetaContext, req, func(reply uint32, data []byte) error {
		if reply != repMetaContext || len(data) < 4 {
			return protocolError("bad reply %d to the metadata contexts", reply)
		}
		name := string(data[4:])
		e.contexts[binary.BigEndian.Uint32(data)] = name
		granted[name] = true
		return nil
	})
	if err != nil {
		return fmt.Errorf("metadata contexts: %w", err)
	}
	for _, w := range want {
		if !granted[w] {
			return fmt.Errorf("the server has no metadata context %q for export %q", w, n.name)
		}
	}
	if len(e.contexts) != len(want) {
		return protocolError("%d metadata contexts granted, %d asked for", len(e.contexts), len(want))
	}
	return nil
}

// goTransmit selects the export and ends the negotiation.
func (n negotiation) goTransmit(e *export) error {
	req := appendString(nil, n.name)
	req = binary.BigEndian.AppendUint16(req, 1)
	req = binary.BigEndian.AppendUint16(req, infoBlockSize)
	seen := false
	err := n.option(optGo, req, func(reply uint32, data []byte) error {
		if reply != repInfo || len(data) < 2 {
			return protocolError("bad reply %d to NBD_OPT_GO", reply)
		}
		switch binary.BigEndian.Uint16(data) {
		case infoExport:
			seen = true
			return e.setExport(data[2:])
		case infoBlockSize:
			return e.setBlockSizes(data[2:])
		}
		return nil // other information was not asked for and may be ignored
	})
	if err != nil {
		return fmt.Errorf("export %q: %w", n.name, err)
	}
	if !seen {
		return protocolError("no size for export %q", n.name)
	}
	return nil
}

func (e *export) setExport(data []byte) error {
	if len(data) != 10 {
		return protocolError("export information of %d bytes", len(data))
	}
	size := binary.BigEndian.Uint64(data)
	if size > math.MaxInt64 {
		return protocolError("export of %d bytes", size)
	}
	e.size, e.flags = int64(size), binary.BigEndian.Uint16(data[8:])
	return nil
}

func (e *export) setBlockSizes(data []byte) error {
	if len(data) != 12 {
		return protocolError("block sizes of %d bytes", len(data))
	}
	least, preferred, most := binary.BigEndian.Uint32(data), binary.BigEndian.Uint32(data[4:]), binary.BigEndian.Uint32(data[8:])
	if least == 0 || least&(least-1) != 0 || least > preferred || least > most {
		return protocolError("block sizes %d, %d, %d", least, preferred, most)
	}
	e.minBlock, e.preferredBlock, e.maxBlock = least, preferred, most
	return nil
}

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}
