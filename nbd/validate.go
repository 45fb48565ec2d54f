package nbd

import "nbd-ktls-server/nbd/wire"

// validate reports why a request cannot be worked on: an error that wraps the
// NBD error the client is to get (proto.md, "Request types", "Error values").
func (s *session) validate(r *wire.Request) error {
	if err := s.validateCommand(r); err != nil {
		return err
	}
	if r.Command == wire.CmdFlush {
		return nil // its offset and length are reserved, and clients have sent other things than zero
	}
	if err := s.validateRange(r); err != nil {
		return err
	}
	if n := r.Length; (r.Command == wire.CmdRead || r.Command == wire.CmdWrite) && n > s.able.BlockSize.Maximum {
		return refuse(wire.EINVAL, "%d bytes, the largest payload is %d", n, s.able.BlockSize.Maximum)
	}
	return nil
}

// validateCommand checks the command and its flags. Neither may be used unless
// the export has offered it.
func (s *session) validateCommand(r *wire.Request) error {
	var need wire.TransmissionFlags
	var flags wire.CommandFlags
	switch r.Command {
	case wire.CmdRead, wire.CmdWrite:
	case wire.CmdFlush:
		need = wire.FlagSendFlush
	case wire.CmdTrim:
		need = wire.FlagSendTrim
	case wire.CmdWriteZeroes:
		need = wire.FlagSendWriteZeroes
		flags = wire.CmdFlagNoHole
	default:
		return refuse(wire.EINVAL, "unknown command")
	}
	if s.flags&wire.FlagReadOnly != 0 && changes(r.Command) {
		return refuse(wire.EPERM, "the export is read-only")
	}
	if s.flags&need != need {
		return refuse(wire.EINVAL, "the export has not offered this command")
	}
	// FUA is allowed on every command once it is offered on any.
	if s.flags&wire.FlagSendFUA != 0 {
		flags |= wire.CmdFlagFUA
	}
	if unknown := r.Flags &^ flags; unknown != 0 {
		return refuse(wire.EINVAL, "flags %#x do not belong to this command", uint16(unknown))
	}
	return nil
}

func changes(c wire.Command) bool {
	return c == wire.CmdWrite || c == wire.CmdTrim || c == wire.CmdWriteZeroes
}

// validateRange checks offset and length against the export, without overflow.
func (s *session) validateRange(r *wire.Request) error {
	size := uint64(s.able.Size)
	if r.Offset > size || uint64(r.Length) > size-r.Offset {
		errno := wire.EINVAL
		if r.Command == wire.CmdWrite || r.Command == wire.CmdWriteZeroes {
			errno = wire.ENOSPC
		}
		return refuse(errno, "%d bytes at %d reach past the end, which is %d", r.Length, r.Offset, size)
	}
	if unit := uint64(s.able.BlockSize.Minimum); (r.Offset|uint64(r.Length))&(unit-1) != 0 {
		return refuse(wire.EINVAL, "%d bytes at %d are not aligned to %d", r.Length, r.Offset, unit)
	}
	return nil
}
