//go:build !linux

package file

import (
	"errors"
	"os"
)

const nonblock = 0

var errNo = errors.ErrUnsupported

func datasync(f *os.File) error                       { return f.Sync() }
func readNowait(*os.File, []byte, int64) (int, error) { return 0, errNo }
func inMemory(*os.File) bool                          { return false }
func punchHole(*os.File, int64, int64) error          { return errNo }
func zeroRange(*os.File, int64, int64) error          { return errNo }
func allocate(*os.File, int64, int64) error           { return errNo }
func discard(*os.File, int64, int64) error            { return errNo }
func seekData(*os.File, int64) (int64, error)         { return 0, errNo }
func seekHole(*os.File, int64) (int64, error)         { return 0, errNo }
func willNeed(*os.File, int64, int64) error           { return nil }
func isInvalid(error) bool                            { return false }
func advise(*os.File, Advice)                         {}
func rotational(*os.File) bool                        { return false }
func lock(*os.File, bool) error                       { return nil }
