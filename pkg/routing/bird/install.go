package bird

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"

	"flock.fritzlab.net/flock/internal/atomicfile"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/routing/birdc"
	"flock.fritzlab.net/flock/pkg/routing/departure/stop"
)

// The files in an Applier's directory.
const (
	confName     = "bird.conf"
	newName      = "bird.conf.new"
	rejectedName = "bird.conf.rejected"
)

// RanBefore reports whether there is a file that BIRD has run with since the node's
// start. With OSPF, a BIRD that has not is configured when it is there: it takes a
// start from a file for a restart, in which it announces nothing for the whole grace
// period unless a router knows of its life before (RFC 3623 section 2.2).
func (a *Applier) RanBefore() bool {
	_, err := sys.Stat(a.path(confName))
	return !errors.Is(err, os.ErrNotExist)
}

// install makes want the content of bird.conf, if check accepts it and it is not
// there yet. It returns what was there, for restore: what cannot be read stays.
func (a *Applier) install(ctx context.Context, want []byte, check func(context.Context, string) error) (before []byte, err error) {
	before, err = atomicfile.Read(a.path(confName))
	if err != nil && !errors.Is(err, os.ErrNotExist) || err == nil && bytes.Equal(before, want) {
		return before, err
	}
	if err := sys.MkdirAll(a.Dir, 0o700); err != nil {
		return before, err
	}
	if err := atomicfile.Write(a.path(newName), want); err != nil {
		return before, err
	}
	if check != nil {
		err := check(ctx, a.path(newName))
		if refusal := new(birdc.ReplyError); errors.As(err, &refusal) {
			return before, a.reject(a.path(newName), refusal.Text)
		} else if err != nil {
			return before, err
		}
	}
	sys.Remove(a.path(rejectedName)) // speaks of what is no longer wanted
	return before, sys.Rename(a.path(newName), a.path(confName))
}

// installDeparting writes the configuration with which the node leaves, for
// flock-bird-stop.
func (a *Applier) installDeparting() error {
	a.mu.Lock()
	want := a.departing
	a.mu.Unlock()
	path := a.path(stop.ConfigFile)
	if is, err := atomicfile.Read(path); want == nil || err == nil && bytes.Equal(is, want) {
		return nil
	}
	return atomicfile.Write(path, want)
}

// restore puts back what install has replaced.
func (a *Applier) restore(before []byte) error {
	if before == nil {
		return nil
	}
	return atomicfile.Write(a.path(confName), before)
}

func (a *Applier) reject(file, message string) error {
	if err := sys.Rename(file, a.path(rejectedName)); err != nil {
		return err
	}
	return &RefusedError{File: a.path(rejectedName), Message: message}
}

func (a *Applier) path(name string) string { return filepath.Join(a.Dir, name) }
