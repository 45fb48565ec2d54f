//go:build !linux

package tlsengine

import "errors"

func setLowWater(int, int) error { return errors.ErrUnsupported }
