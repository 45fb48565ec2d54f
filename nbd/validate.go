package nbd

import "nbd-ktls-server/nbd/wire"

// command says what belongs to a command.
type command struct {
	// need is the transmission flag that offers it.
	need wire.TransmissionFlags
	// flags are its command flags, apart from FUA.
	flags wire.CommandFlags
	// changes says that it is not for read-only exports.
	changes bool
}

// commands are those that can be answered (proto.md, "Request types").
var commands = map[wire.Command]command{
	wire.CmdRead:        {flags: wire.CmdFlagDF},
	wire.CmdWrite:       {flags: wire.CmdFlagPayloadLen, changes: true},
	wire.CmdFlush:       {need: wire.FlagSendFlush},
	wire.CmdTrim:        {need: wire.FlagSendTrim, changes: true},
	wire.CmdCache:       {need: wire.FlagSendCache},
	wire.CmdWriteZeroes: {need: wire.FlagSendWriteZeroes, flags: wire.CmdFlagNoHole | wire.CmdFlagFastZero, changes: true},
	wire.CmdBlockStatus: {flags: wire.CmdFlagReqOne | wire.CmdFlagPayloadLen},
}

// offers are the command flags that a transmission flag, or extended headers,
// must have offered first.
func (s *session) offers(f wire.CommandFlags) bool {
	switch f {
	case wire.CmdFlagFUA:
		return s.flags&wire.FlagSendFUA != 0
	case wire.CmdFlagDF:
		return s.flags&wire.FlagSendDF != 0
	case wire.CmdFlagFastZero:
		return s.flags&wire.FlagSendFastZero != 0
	case wire.CmdFlagPayloadLen:
		return s.style == extended
	}
	return true
}

// validate reports why a request cannot be worked on: an error that wraps the
// NBD error the client is to get (proto.md, "Request types", "Error values").
func (s *session) validate(r *request) error {
	if err := s.validateCommand(r); err != nil {
		return err
	}
	switch r.Command {
	case wire.CmdFlush:
		return nil // its offset and length are reserved, and clients have sent other things than zero
	case wire.CmdBlockStatus:
		return s.validateStatus(r)
	case wire.CmdRead, wire.CmdWrite:
		if r.Length > uint64(s.able.BlockSize.Maximum) {
			return refuse(wire.EINVAL, "%d bytes, the largest payload is %d", r.Length, s.able.BlockSize.Maximum)
		}
	}
	return s.validateRange(&r.Request)
}

// validateCommand checks the command and its flags. Neither may be used unless
// it has been offered.
func (s *session) validateCommand(r *request) error {
	c, ok := commands[r.Command]
	switch {
	case !ok:
		return refuse(wire.EINVAL, "unknown command %d", uint16(r.Command))
	case c.changes && s.flags&wire.FlagReadOnly != 0:
		return refuse(wire.EPERM, "the export is read-only")
	case s.flags&c.need != c.need:
		return refuse(wire.EINVAL, "the export has not offered %v", r.Command)
	}
	// FUA is allowed on every command once it is offered on any.
	for rest := r.Flags; rest != 0; rest &= rest - 1 {
		f := rest & -rest
		if f&(c.flags|wire.CmdFlagFUA) == 0 || !s.offers(f) {
			return refuse(wire.EINVAL, "flag %#x does not belong to %v", uint16(f), r.Command)
		}
	}
	return nil
}

// validateStatus checks a BLOCK_STATUS. With a payload the range is in that,
// and is checked when it has been read.
func (s *session) validateStatus(r *request) error {
	switch {
	case !s.allocation:
		return refuse(wire.EINVAL, "no metadata context has been selected for this export")
	case r.payloadLen > maxStatusPayload:
		return refuse(wire.EINVAL, "a payload of %d bytes, the largest is %d", r.payloadLen, maxStatusPayload)
	case r.payloadLen > 0 || r.Flags&wire.CmdFlagPayloadLen != 0:
		return nil
	}
	return s.validateRange(&r.Request)
}

// validateRange checks offset and length against the export, without overflow.
func (s *session) validateRange(r *wire.Request) error {
	size := uint64(s.able.Size)
	if r.Offset > size || r.Length > size-r.Offset {
		errno := wire.EINVAL
		if r.Command == wire.CmdWrite || r.Command == wire.CmdWriteZeroes {
			errno = wire.ENOSPC
		}
		return refuse(errno, "%d bytes at %d reach past the end, which is %d", r.Length, r.Offset, size)
	}
	if unit := uint64(s.able.BlockSize.Minimum); (r.Offset|r.Length)&(unit-1) != 0 {
		return refuse(wire.EINVAL, "%d bytes at %d are not aligned to %d", r.Length, r.Offset, unit)
	}
	return nil
}
