package tlsengine

import (
	"os"
	"testing"
)

// kernelPolicy is what the connections of this package's tests want of the
// kernel. NBD_TEST_KTLS tells what that can do; where it can do everything, every
// test here is one of the kernel.
func kernelPolicy() KTLS {
	if os.Getenv("NBD_TEST_KTLS") == "rekey" {
		return KTLSRequire
	}
	return KTLSAuto
}

func TestTheKernelMakesTheRecords(t *testing.T) {
	expected := os.Getenv("NBD_TEST_KTLS")
	if expected == "" {
		t.Skip("NBD_TEST_KTLS does not say what this kernel can do")
	}
	server, _ := connect(t, Options{}, nil)
	if server.State().TX.Kernel != (expected == "rekey") {
		t.Errorf("%s: %v", expected, server)
	}
	t.Log(server)
}
