package wire

// HandshakeFlags are sent by the server in its greeting.
type HandshakeFlags uint16

// ClientFlags answer the greeting; each bit repeats a [HandshakeFlags] bit.
type ClientFlags uint32

const (
	FlagFixedNewstyle HandshakeFlags = 1 << 0
	FlagNoZeroes      HandshakeFlags = 1 << 1

	FlagCFixedNewstyle ClientFlags = 1 << 0
	FlagCNoZeroes      ClientFlags = 1 << 1
)

// TransmissionFlags say what an export can do (proto.md, "Transmission flags").
type TransmissionFlags uint16

const (
	FlagHasFlags        TransmissionFlags = 1 << 0
	FlagReadOnly        TransmissionFlags = 1 << 1
	FlagSendFlush       TransmissionFlags = 1 << 2
	FlagSendFUA         TransmissionFlags = 1 << 3
	FlagRotational      TransmissionFlags = 1 << 4
	FlagSendTrim        TransmissionFlags = 1 << 5
	FlagSendWriteZeroes TransmissionFlags = 1 << 6
	FlagSendDF          TransmissionFlags = 1 << 7
	FlagCanMultiConn    TransmissionFlags = 1 << 8
	FlagSendCache       TransmissionFlags = 1 << 10
	FlagSendFastZero    TransmissionFlags = 1 << 11
	// FlagBlockStatusPayload comes with extended headers only.
	FlagBlockStatusPayload TransmissionFlags = 1 << 12
)

// CommandFlags modify one request (proto.md, "Command flags").
type CommandFlags uint16

const (
	CmdFlagFUA      CommandFlags = 1 << 0
	CmdFlagNoHole   CommandFlags = 1 << 1
	CmdFlagDF       CommandFlags = 1 << 2
	CmdFlagReqOne   CommandFlags = 1 << 3
	CmdFlagFastZero CommandFlags = 1 << 4
	// CmdFlagPayloadLen says that Length bytes of payload follow the request.
	// It comes with extended headers only.
	CmdFlagPayloadLen CommandFlags = 1 << 5
)
