package routing

import (
	"errors"
	"fmt"
	"log/slog"

	"flock.fritzlab.net/flock/pkg/routing/seal"
)

// Password is a key that the node shares with a router. It prints as a
// placeholder in every format; only Reveal gives it away.
type Password struct {
	// A pointer, because fmt prints the unexported fields of other types
	// without asking Format.
	s *string
}

// maxPassword is what the kernel takes for TCP MD5 (TCP_MD5SIG_MAXKEYLEN), in
// bytes.
const maxPassword = seal.Most

// ParsePassword takes the value of a Secret's key. The error does not hold the
// value.
func ParsePassword(value []byte) (Password, error) {
	switch {
	case len(value) == 0:
		return Password{}, errors.New("the password is empty")
	case len(value) > maxPassword:
		return Password{}, fmt.Errorf("the password has %d bytes: want at most %d, what Linux takes (RFC 2385)", len(value), maxPassword)
	case value[len(value)-1] == '\n':
		return Password{}, errors.New("the password ends in a line break: create the Secret again, with printf or echo -n")
	}
	for i, b := range value {
		if b < 0x20 || b > 0x7e || b == '"' {
			return Password{}, fmt.Errorf("the password has a byte at position %d that is no printable ASCII character, or a double quote: BIRD's configuration cannot hold it", i)
		}
	}
	s := string(value)
	return Password{&s}, nil
}

// Reveal returns the password itself, for the one file that has to hold it; ""
// of the zero value.
func (p Password) Reveal() string {
	if p.s == nil {
		return ""
	}
	return *p.s
}

const redacted = "(secret)"

// Format prints a placeholder for every verb.
func (p Password) Format(f fmt.State, _ rune) { fmt.Fprint(f, redacted) }

// LogValue is the placeholder too.
func (p Password) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText is the placeholder too.
func (p Password) MarshalText() ([]byte, error) { return []byte(redacted), nil }
