// Package stop ends BIRD when its container is stopped: as a restart, over which peers
// keep the node's routes (RFC 4724), or as the departure of the node, with a Cease.
//
// The agent decides which (package departure) and leaves the decision in a file beside
// BIRD's configuration, so that BIRD ends rightly also when no agent runs. The package
// is linked into a program that runs once and must start quickly: it imports nothing of
// Kubernetes.
package stop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"flock.fritzlab.net/flock/internal/atomicfile"
	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/pkg/routing/birdc"
)

const (
	decisionFile = "departure"
	// ConfigFile is the configuration of a departing node, in BIRD's directory.
	ConfigFile = "bird.conf.departing"

	// finalWithin is how long Run waits for the agent's last decision. The kubelet stops
	// both containers at once, and the agent asks the API server first.
	finalWithin = 2 * time.Second
	// Converge is how long routers have to move traffic away, between the update that
	// asks them to and the end of the sessions.
	Converge = time.Second
)

// Decision is what the end of BIRD means.
type Decision struct {
	// Leave: the node leaves the network. Otherwise BIRD restarts.
	Leave bool
	// Withdraw: the node has withdrawn its anycast addresses already. It is for the next
	// agent.
	Withdraw bool
	// Final: the agent is ending and decides no more.
	Final  bool
	Reason string
}

// Write leaves d in BIRD's directory.
func Write(dir string, d Decision) error {
	words := []string{"restart"}
	if d.Leave {
		words[0] = "leave"
	}
	if d.Withdraw {
		words = append(words, "withdraw")
	}
	if d.Final {
		words = append(words, "final")
	}
	return atomicfile.Write(filepath.Join(dir, decisionFile), []byte(strings.Join(words, " ")+"\n"+d.Reason+"\n"))
}

// Read returns the decision in BIRD's directory: a restart, if there is none.
func Read(dir string) (Decision, error) {
	content, err := atomicfile.Read(filepath.Join(dir, decisionFile))
	if errors.Is(err, os.ErrNotExist) {
		return Decision{}, nil
	}
	words, reason, _ := strings.Cut(string(content), "\n")
	return Decision{
		Leave:    strings.HasPrefix(words, "leave"),
		Withdraw: strings.Contains(words, " withdraw"),
		Final:    strings.HasSuffix(words, " final"),
		Reason:   strings.TrimSpace(reason),
	}, err
}

// Run ends the BIRD that listens on socket as the decision in dir says, and returns when
// it has ended.
func Run(ctx context.Context, dir, socket string) (Decision, error) {
	// What cannot be read decides nothing: BIRD restarts, which is better than SIGTERM alone.
	d, err := final(ctx, dir)
	conn, dialErr := dial(ctx, socket)
	if dialErr != nil {
		return d, errors.Join(err, dialErr)
	}
	defer conn.Close()
	if !d.Leave {
		if restartErr := conn.GracefulRestart(ctx); restartErr != nil {
			return d, errors.Join(err, restartErr)
		}
		return d, errors.Join(err, conn.Ended(ctx))
	}
	// A node that could not ask routers to prefer other paths still leaves.
	path := filepath.Join(dir, ConfigFile)
	if _, err = conn.Configure(ctx, birdc.Options{File: path}); err != nil {
		err = fmt.Errorf("cannot announce the departure by %s: %w", path, err)
	} else {
		select {
		case <-time.After(Converge):
		case <-ctx.Done():
		}
	}
	if downErr := conn.Down(ctx); downErr != nil {
		return d, errors.Join(err, downErr)
	}
	return d, errors.Join(err, conn.Ended(ctx))
}

// again is how long Run waits before it tries something once more.
const again = 20 * time.Millisecond

// dial connects to BIRD. An error that may pass (EAGAIN, EMFILE, or BIRD is busy) is one only
// when ctx ends; that BIRD does not run is one at once.
func dial(ctx context.Context, socket string) (*birdc.Conn, error) {
	for {
		conn, err := birdc.Dial(ctx, socket)
		if err == nil || errors.Is(err, birdc.ErrAbsent) {
			return conn, err
		}
		if backoff.Sleep(ctx, again) != nil {
			return nil, err
		}
	}
}

// final waits for the agent's last decision, and takes the one before it if there is
// none in time. The error is of the last read, if none succeeded; the decision is a restart then.
func final(ctx context.Context, dir string) (last Decision, err error) {
	ctx, cancel := context.WithTimeout(ctx, finalWithin)
	defer cancel()
	for once := false; ; {
		d, readErr := Read(dir)
		if readErr == nil {
			last, err, once = d, nil, true
		} else if !once {
			err = readErr
		}
		if last.Final {
			return last, err
		}
		if backoff.Sleep(ctx, again) != nil {
			return last, err
		}
	}
}
