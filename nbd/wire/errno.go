package wire

// Errno is an error value of a reply; no others may be sent (proto.md, "Error
// values"). Zero is success.
type Errno uint32

const (
	EPERM     Errno = 1   // EPERM
	EIO       Errno = 5   // EIO
	ENOMEM    Errno = 12  // ENOMEM
	EINVAL    Errno = 22  // EINVAL
	ENOSPC    Errno = 28  // ENOSPC
	EOVERFLOW Errno = 75  // EOVERFLOW
	ENOTSUP   Errno = 95  // ENOTSUP
	ESHUTDOWN Errno = 108 // ESHUTDOWN
)

// Error makes an Errno an error; wrap it with %w to say why.
func (e Errno) Error() string { return "NBD_" + e.String() }
