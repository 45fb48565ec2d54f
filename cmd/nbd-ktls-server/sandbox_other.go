//go:build !linux

package main

func (b *sandbox) enter() error { return errNoLandlock }
