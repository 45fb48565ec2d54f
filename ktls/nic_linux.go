package ktls

import (
	"bytes"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offload says for every network interface whether it encrypts by itself what
// the kernel sends: on, off, or fixed off where it cannot. Linux lets it do so
// for TLS 1.2 only.
func Offload() map[string]string {
	all := make(map[string]string)
	ifs, _ := net.Interfaces()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return all
	}
	defer unix.Close(fd)
	for _, i := range ifs {
		if state := offload(fd, i.Name); state != "" {
			all[i.Name] = state
		}
	}
	return all
}

// <linux/ethtool.h>
const (
	ethGStrings     = 0x1b // ETHTOOL_GSTRINGS
	ethGFeatures    = 0x3a // ETHTOOL_GFEATURES
	ethFeatures     = 4    // ETH_SS_FEATURES
	ethStringLen    = 32
	maxFeatures     = 1024
	featureTLSHWOut = "tls-hw-tx-offload"
)

// ethStrings is struct ethtool_gstrings.
type ethStrings struct {
	cmd, set, n uint32
	data        [maxFeatures * ethStringLen]byte
}

// ethFeatureBlocks is struct ethtool_gfeatures: 32 features a block.
type ethFeatureBlocks struct {
	cmd, n uint32
	blocks [maxFeatures / 32]struct{ available, requested, active, neverChanged uint32 }
}

func offload(fd int, name string) string {
	names := &ethStrings{cmd: ethGStrings, set: ethFeatures} // n has to be 0 or right
	if ethtool(fd, name, unsafe.Pointer(names)) != nil {
		return ""
	}
	for i := range min(int(names.n), maxFeatures) {
		s := names.data[i*ethStringLen:][:ethStringLen]
		if string(bytes.TrimRight(s, "\x00")) != featureTLSHWOut {
			continue
		}
		f := &ethFeatureBlocks{cmd: ethGFeatures, n: maxFeatures / 32}
		if ethtool(fd, name, unsafe.Pointer(f)) != nil {
			return ""
		}
		b, bit := f.blocks[i/32], uint32(1)<<(i%32)
		switch {
		case b.active&bit != 0:
			return "on"
		case b.available&bit == 0 || b.neverChanged&bit != 0:
			return "fixed off"
		}
		return "off"
	}
	return ""
}

// ethtool is ioctl(SIOCETHTOOL).
func ethtool(fd int, name string, data unsafe.Pointer) error {
	ifr := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: data}
	copy(ifr.name[:unix.IFNAMSIZ-1], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr))); errno != 0 {
		return errno
	}
	return nil
}
