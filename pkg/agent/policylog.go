//go:build linux

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/datapath/policy"
	"flock.fritzlab.net/flock/pkg/kube"
)

// policyLog has the connections logged that policies deny, of the namespaces whose
// annotation asks for it. It follows those that have a pod on the node that a policy
// selects. A node on which none asks has nothing of it.
type policyLog struct {
	namespaces *kube.Namespaces
	changed    *cell.Topic // of the namespaces
	policies   *policies
	log        *slog.Logger

	asked map[string]bool // Run's own: namespaces that ask
	wrong map[string]bool // and those with another value, which was warned of
}

// Run follows the namespaces until ctx ends.
func (p *policyLog) Run(ctx context.Context) error {
	changed := cell.Signal()
	p.changed.Notify(changed)
	p.policies.Selected().Notify(changed)
	delay := backoff.Backoff{First: time.Second, Last: time.Minute}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		if p.read(); len(p.asked) == 0 {
			delay.Reset()
			continue
		}
		denied, err := policy.OpenDenyLog(p.policies.Enforcer, p.log)
		if err == nil {
			err = p.write(ctx, denied, changed)
		}
		if err != nil {
			p.log.Error("cannot log what network policies deny, will retry", "error", err)
			if delay.Wait(ctx) != nil {
				return nil
			}
			cell.Wake(changed)
		}
	}
}

// write has lines written until ctx ends, or no namespace asks for them any more.
func (p *policyLog) write(ctx context.Context, denied *policy.DenyLog, changed chan struct{}) error {
	defer denied.Close()
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- denied.Run(ctx)
		close(ended)
	}()
	defer func() { cancel(); <-ended }()
	defer p.policies.SetLogged()
	for len(p.asked) > 0 {
		p.policies.SetLogged(slices.Collect(maps.Keys(p.asked))...)
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return err
		case <-changed:
			p.read()
		}
	}
	return nil
}

// read takes in which namespaces ask for a log.
func (p *policyLog) read() {
	asked, wrong := map[string]bool{}, map[string]bool{}
	for _, name := range p.policies.Selected().Get() {
		switch value, _ := p.namespaces.PolicyLog(name); value {
		case "", v1alpha1.PolicyLogOff:
		case v1alpha1.PolicyLogDeny:
			asked[name] = true
		default:
			wrong[name] = true
			if !p.wrong[name] {
				p.log.Warn("ignoring an annotation: nothing is logged", "namespace", name,
					"reason", fmt.Sprintf("%s=%q: want %q or %q", v1alpha1.PolicyLogAnnotation, value, v1alpha1.PolicyLogDeny, v1alpha1.PolicyLogOff))
			}
		}
	}
	p.asked, p.wrong = asked, wrong
}
