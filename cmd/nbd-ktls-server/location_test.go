package main

import "testing"

func TestURI(t *testing.T) {
	for _, test := range []struct {
		at   location
		want string
	}{
		{location{host: "localhost", port: "10809", tls: "off"}, "nbd://localhost:10809"},
		{location{host: "localhost", port: "1", tls: "off", exportname: "a/b c?"}, "nbd://localhost:1/a/b%20c%3F"},
		{location{host: "localhost", port: "1", tls: "on", tlsDir: "/pki"}, "nbd://localhost:1"},
		{location{host: "[2001:db8::1]", port: "1", tls: "require", tlsDir: "/p k+i&"}, "nbds://[2001:db8::1]:1/?tls-certificates=/p%20k%2Bi%26"},
		{location{unixsocket: "/tmp/s", tls: "off"}, "nbd+unix:///?socket=/tmp/s"},
		{location{unixsocket: "/tmp/s", tls: "require", tlsDir: "/pki", exportname: "x"}, "nbds+unix:///x?socket=/tmp/s&tls-certificates=/pki"},
	} {
		if got := test.at.uri(); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}

func TestShellQuote(t *testing.T) {
	for s, want := range map[string]string{
		"": "''", "/a/b-c.d": "/a/b-c.d", "a b": "'a b'", "it's": `'it'\''s'`, "a?b": "'a?b'", "x&y": "'x&y'",
	} {
		if got := shellQuote(s); got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
}
