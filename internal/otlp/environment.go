package otlp

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"

	"flock.fritzlab.net/flock/internal/sys"
)

// Settings are what OpenTelemetry's environment variables say of how spans are sent. The zero
// value is what holds without any.
type Settings struct {
	headers  http.Header // their values are secrets
	compress bool
	ca       variable // its value is the path of a PEM file; empty: the machine's CAs
}

// variable is one that is set.
type variable struct{ name, value string }

// String keeps the headers out of what is printed.
func (s Settings) String() string {
	return fmt.Sprintf("%d headers, gzip %t, CA %q", len(s.headers), s.compress, s.ca.value)
}

// GoString is String.
func (s Settings) GoString() string { return s.String() }

// FromEnvironment reads the variables. The one for traces goes before the one for all signals,
// and an empty one counts as none, as the specification has it. No error has a part of the
// headers: in a list that is not encoded, what looks like a name may be a piece of a secret.
func FromEnvironment(getenv func(string) string) (s Settings, err error) {
	lookup := func(what string) variable {
		for _, prefix := range []string{"OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"} {
			if value := strings.TrimSpace(getenv(prefix + what)); value != "" {
				return variable{prefix + what, value}
			}
		}
		return variable{}
	}
	s.ca = lookup("CERTIFICATE")
	v := lookup("COMPRESSION")
	switch strings.ToLower(v.value) {
	case "", "none":
	case "gzip":
		s.compress = true
	default:
		return Settings{}, fmt.Errorf("%s=%q: want gzip or none", v.name, v.value)
	}
	v = lookup("HEADERS")
	if s.headers, err = parseHeaders(v.value); err != nil {
		return Settings{}, fmt.Errorf("%s: %w", v.name, err)
	}
	return s, nil
}

// parseHeaders reads name=value,name=value with percent-encoded values: W3C Baggage without
// properties.
func parseHeaders(list string) (http.Header, error) {
	headers := http.Header{}
	for i, entry := range strings.Split(list, ",") {
		entry = strings.TrimSpace(entry)
		if entry == "" {
			continue
		}
		bad := func(why string) error {
			return fmt.Errorf("entry %d %s: want name=value,name=value with percent-encoded values, as in Authorization=Basic%%20dXNlcjpwYXNz", i+1, why)
		}
		name, value, ok := strings.Cut(entry, "=")
		name = strings.TrimSpace(name)
		switch {
		case !ok:
			return nil, bad("has no =")
		case !isToken(name):
			return nil, bad("has no name of a header before its =")
		}
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if err != nil {
			return nil, bad("has a % that begins no escape")
		}
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			return nil, bad("has a control character in its value")
		}
		switch key := textproto.CanonicalMIMEHeaderKey(name); key {
		case "Host", "Connection", "Content-Type", "Content-Encoding", "Content-Length", "Transfer-Encoding":
			return nil, fmt.Errorf("entry %d is the header %s, which flock sets itself: leave it out", i+1, key)
		default:
			headers.Set(key, value)
		}
	}
	return headers, nil
}

// isToken says whether s can be the name of a header (RFC 9110 section 5.6.2).
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	})
}

// shortest is the length from which a header's value may be a secret. A tenant's number is none, and
// would be found everywhere.
const shortest = 6

// secrets replaces the headers' values in text: the collector may repeat in its answer what it
// does not accept.
func (s Settings) secrets() *strings.Replacer {
	var pairs []string
	for _, values := range s.headers {
		for _, value := range values {
			_, credentials, _ := strings.Cut(value, " ") // without Basic or Bearer
			for _, secret := range []string{value, credentials} {
				if len(secret) >= shortest {
					pairs = append(pairs, secret, hidden)
				}
			}
		}
	}
	return strings.NewReplacer(pairs...)
}

// authority is the CA that the collector's certificate must be of.
type authority struct {
	file      variable
	read      []byte // what the file had
	transport *http.Transport
}

// follow reads the file again, as a CA is renewed while the agent runs. It returns the transport
// with it; the same as before while the file is.
func (a *authority) follow() (*http.Transport, error) {
	content, err := sys.ReadFile(a.file.value)
	if err != nil {
		if at := (*fs.PathError)(nil); errors.As(err, &at) {
			err = at.Err // it repeats the path
		}
		return nil, a.error(err.Error())
	}
	if a.transport != nil && bytes.Equal(content, a.read) {
		return a.transport, nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(content) {
		return nil, a.error("it has no certificate")
	}
	if a.transport != nil {
		a.transport.CloseIdleConnections()
	}
	a.read, a.transport = content, http.DefaultTransport.(*http.Transport).Clone()
	a.transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	return a.transport, nil
}

func (a *authority) error(why string) error {
	return fmt.Errorf("%s=%q: %s: want a PEM file with the certificate of the collector's CA", a.file.name, a.file.value, why)
}
