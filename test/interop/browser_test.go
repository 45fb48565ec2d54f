package interop

import (
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nbd-ktls-server/test/nbdtest"
)

// TestStatusInABrowser looks at the status page as a person does, while a client
// with a strange export is there.
func TestStatusInABrowser(t *testing.T) {
	need(t, "chromium")
	const strange = `<img src=x onerror="document.title='owned'">`
	p, port := nbdtest.NewPKI(t), freePort(t)
	s := start(t, "--tls-certificates="+p.Dir, "--tls-verify-peer", "--metrics=127.0.0.1:"+port, "-e", strange, "memory", "64M")
	c := nbdtest.Hello(t, s.addr())
	c.StartTLS(p.Client(p.ClientPair))
	c.Go(strange)
	if _, errno := c.Pread(0, 3<<20); errno != 0 {
		t.Fatal(errno)
	}
	stranger := nbdtest.Hello(t, s.addr())
	stranger.StartTLS(p.Client(nil))
	stranger.Close()

	picture := filepath.Join(t.TempDir(), "status.png")
	out := run(t, "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--user-data-dir="+t.TempDir(),
		"--window-size=1200,800", "--virtual-time-budget=2000", "--screenshot="+picture, "--dump-dom", "http://127.0.0.1:"+port+"/status")
	for _, want := range []string{
		"<title>nbd-ktls-server</title>", // and nothing that the export's name does
		"&lt;img src=x", `<td class="n">3.0 MiB</td>`, "CN=client", "TLS_AES_128_GCM_SHA256",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the page does not say %q:\n%s", want, out)
		}
	}
	f, err := os.Open(picture)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[any]bool{}
	for y := range img.Bounds().Dy() {
		for x := range img.Bounds().Dx() {
			seen[img.At(x, y)] = true
		}
	}
	if len(seen) < 10 { // letters have many shades
		t.Errorf("the picture has %d colours", len(seen))
	}
	if dir := os.Getenv("NBD_TEST_PICTURES"); dir != "" {
		run(t, "cp", picture, dir)
	}
}
