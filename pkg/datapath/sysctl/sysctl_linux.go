// Package sysctl reads and writes settings below /proc/sys/net, of the network namespace of
// the calling thread. Names are paths below it: "ipv4/ip_forward".
package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"

	"flock.fritzlab.net/flock/internal/sys"
)

// mounted is a second way to /proc/sys/net, which a container that is not privileged has
// read-only: deploy/ mounts the host's here. Either shows the namespace of the thread that
// looks.
const mounted = "/host/proc/sys/net"

// place is where the settings are.
type place struct {
	mounted string
	mu      sync.Mutex // guards found
	found   string     // empty while it is not known
}

var settings = place{mounted: mounted}

// path is that of a setting. Only what is known of the mount is remembered: where looking fails,
// the next call looks again.
func (p *place) path(name string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.found == "" {
		switch _, err := sys.Stat(p.mounted); {
		case err == nil:
			p.found = p.mounted
		case errors.Is(err, fs.ErrNotExist):
			p.found = "/proc/sys/net"
		default:
			return "", err
		}
	}
	return filepath.Join(p.found, name), nil
}

// Read is the value of a setting. The error is [fs.ErrNotExist] where the kernel has none of
// that name.
func Read(name string) (string, error) {
	path, err := settings.path(name)
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", Name(name), err)
	}
	b, err := sys.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", Name(name), err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Write sets a setting.
func Write(name, value string) error {
	path, err := settings.path(name)
	if err == nil {
		err = sys.WriteFile(path, []byte(value), 0)
	}
	if err != nil {
		return fmt.Errorf("sysctl %s=%s (in a container: mount the host's /proc/sys/net at %s): %w", Name(name), value, mounted, err)
	}
	return nil
}

// Name is how sysctl(8) writes a setting's name, with dots. A dot in the name of a link stays a
// slash.
func Name(name string) string {
	return "net." + strings.NewReplacer("/", ".", ".", "/").Replace(name)
}
