package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"syscall"

	"nbd-ktls-server/nbd"
)

// disk is what a web server has, as it was when it was opened.
type disk struct {
	*site
	ctx  context.Context // of the client it is for
	size int64
	// tag is what every answer has to have, so that parts of two files are not
	// taken for one; "" if the server gives none.
	tag string
}

// open asks how large the disk is: for its first byte, as not every server that
// knows ranges says so to HEAD.
func (s *site) open(ctx context.Context) (*disk, error) {
	d := &disk{site: s, ctx: ctx}
	r, done, err := d.get(0, 1)
	if err != nil {
		return nil, err
	}
	defer done()
	d.tag = tagOf(r)
	switch r.StatusCode {
	case http.StatusPartialContent:
		_, d.size, err = parseRange(r.Header.Get("Content-Range"))
	case http.StatusRequestedRangeNotSatisfiable: // there is no first byte
		if r.Header.Get("Content-Range") != "bytes */0" {
			err = errors.New("the server does not say how large the disk is")
		}
	case http.StatusOK:
		if r.ContentLength != 0 {
			err = errors.New("the server does not send parts of files (ranges)")
		}
	case http.StatusNotFound, http.StatusGone:
		err = fmt.Errorf("%w: the server says %s", nbd.ErrNoExport, r.Status)
	default:
		err = fmt.Errorf("the server says %s", r.Status)
	}
	return d, err
}

// tagOf is what changes with a file.
func tagOf(r *http.Response) string {
	if tag := r.Header.Get("ETag"); tag != "" {
		return tag
	}
	return r.Header.Get("Last-Modified")
}

// get asks for n bytes at off. done has to be called when the answer has been
// read.
func (d *disk) get(off, n int64) (r *http.Response, done func(), err error) {
	ctx, cancel := context.WithTimeoutCause(d.ctx, d.timeout, errors.New("the server did not answer in time"))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url, nil)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	req.Header = d.header.Clone()
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	if d.user != "" {
		req.SetBasicAuth(d.user, d.password)
	}
	if host := d.header.Get("Host"); host != "" {
		req.Host = host
	}
	r, err = d.client.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel()
		return nil, nil, err
	}
	return r, func() {
		// What is left over is read, if it is little, so that the connection can be
		// used again.
		io.CopyN(io.Discard, r.Body, 4096)
		r.Body.Close()
		cancel()
	}, nil
}

// ReadAt implements [nbd.Backend].
func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	r, done, err := d.get(off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer done()
	if r.StatusCode != http.StatusPartialContent {
		return 0, fmt.Errorf("the server says %s", r.Status)
	}
	first, size, err := parseRange(r.Header.Get("Content-Range"))
	switch {
	case err != nil:
		return 0, err
	case size != d.size, tagOf(r) != d.tag:
		return 0, errors.New("the disk on the server is another one now")
	case first != off:
		return 0, fmt.Errorf("the server sends what is at %d, and %d was asked for", first, off)
	}
	n, err := io.ReadFull(r.Body, p)
	if err != nil {
		return n, fmt.Errorf("the server sends %d of %d bytes: %w", n, len(p), err)
	}
	return n, nil
}

// parseRange reads a Content-Range: where it begins, and how large all is (RFC
// 9110, Section 14.4).
func parseRange(s string) (first, size int64, err error) {
	numbers, ok := strings.CutPrefix(s, "bytes ")
	span, total, ok2 := strings.Cut(numbers, "/")
	from, _, ok3 := strings.Cut(span, "-")
	first, err = strconv.ParseInt(from, 10, 64)
	if err == nil {
		size, err = strconv.ParseInt(total, 10, 64)
	}
	if !ok || !ok2 || !ok3 || err != nil || first < 0 || size <= first {
		return 0, 0, fmt.Errorf("the server sends the range %q", s)
	}
	return first, size, nil
}

// WriteAt implements [nbd.Backend].
func (d *disk) WriteAt([]byte, int64) (int, error) { return 0, syscall.EROFS }

// Size implements [nbd.Backend].
func (d *disk) Size() (int64, error) { return d.size, nil }

// Sync implements [nbd.Backend].
func (d *disk) Sync() error { return nil }

// Resolve implements [nbd.Resolver].
func (d *disk) Resolve(a *nbd.Abilities) error {
	a.ReadOnly()
	a.Sync = nil
	a.MultiConn = true
	return nil
}
