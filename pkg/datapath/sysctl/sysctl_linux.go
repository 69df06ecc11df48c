// Package sysctl reads and writes settings below /proc/sys/net, of the network namespace of
// the calling thread. Names are paths below it: "ipv4/ip_forward".
package sysctl

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"flock.fritzlab.net/flock/internal/sys"
)

// mounted is a second way to /proc/sys/net, which a container that is not privileged has
// read-only: deploy/ mounts the host's here. Either shows the namespace of the thread that
// looks.
const mounted = "/host/proc/sys/net"

var dir = sync.OnceValue(func() string {
	if _, err := sys.Stat(mounted); err == nil {
		return mounted
	}
	return "/proc/sys/net"
})

// Read is the value of a setting. The error is [fs.ErrNotExist] where the kernel has none of
// that name.
func Read(name string) (string, error) {
	b, err := sys.ReadFile(filepath.Join(dir(), name))
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", Name(name), err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Write sets a setting.
func Write(name, value string) error {
	if err := sys.WriteFile(filepath.Join(dir(), name), []byte(value), 0); err != nil {
		return fmt.Errorf("sysctl %s=%s (in a container: mount the host's /proc/sys/net at %s): %w", Name(name), value, mounted, err)
	}
	return nil
}

// Name is how sysctl(8) writes a setting's name, with dots. A dot in the name of a link stays a
// slash.
func Name(name string) string {
	return "net." + strings.NewReplacer("/", ".", ".", "/").Replace(name)
}
