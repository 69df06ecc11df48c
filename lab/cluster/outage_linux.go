package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/pki"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
)

// WithoutAPIServer kills the API server, calls f and starts it again, whatever
// came of f, also after the context has ended.
func (l *Lab) WithoutAPIServer(ctx context.Context, f func() error) error {
	ca, err := pki.Open(l.Dir.Path("pki"))
	if err != nil {
		return err
	}
	running, err := process.List(member.Of(l.Dir, plan.ControlPlane))
	if err != nil {
		return err
	}
	i := slices.IndexFunc(running, func(p *process.Process) bool { return p.Name == "kube-apiserver" && p.Running() })
	if i < 0 {
		return fmt.Errorf("lab %s has no API server that runs: run lab up", l.Dir.Lab())
	}
	if err := running[i].Stop(0); err != nil {
		return err
	}
	failed := f()
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), time.Minute, errors.New("gave up after a minute: run lab up"))
	defer cancel()
	return errors.Join(failed, l.controlPlane(ctx, ca))
}
