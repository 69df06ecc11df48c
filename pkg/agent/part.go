//go:build linux

package agent

import (
	"context"
	"net/http"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// parts are what the agent consists of. A part owns its state; what it offers to
// the agent as a whole is picked up by the interfaces below. So a feature is known
// to the agent by one entry in the list that Run makes.
type parts []any

// What a part may offer.
type (
	// Opener is prepared by Open before anything runs. An error ends the agent.
	Opener interface {
		Open() error
	}
	// Closer gives up what it has open when all parts have ended.
	Closer interface {
		Close()
	}
	// Runner works until ctx ends. An error ends the agent. Run(ctx) without a
	// result is taken too.
	Runner interface {
		Run(ctx context.Context) error
	}
	// Follower says when what the part reports may have changed: it wakes ch.
	Follower interface {
		Notify(ch chan<- struct{})
	}
	// Conditioner contributes conditions to the NodeConfig's status. A type that it
	// leaves out stays as it is there, as an agent before this one wrote it; one
	// with an empty Status is taken away.
	Conditioner interface {
		Conditions() []metav1.Condition
	}
	// Reporter contributes other fields of the NodeConfig's status.
	Reporter interface {
		Report(ctx context.Context, status *v1alpha1.NodeConfigStatus)
	}
	// Readier says why pods that come now would not be served rightly, with the
	// reason that the condition Ready then has; an empty message: they would be.
	Readier interface {
		Unready() (reason, message string)
	}
	// Settler says what a roll-out waits for before it goes on to the next node, in
	// addition to a Readier; empty: for nothing.
	Settler interface {
		Unsettled() string
	}
	// Answerer answers at the agent's socket, which only root can open: a pattern of
	// net/http and what serves it.
	Answerer interface {
		Answer() (pattern string, h http.Handler)
	}
	// A prometheus.Collector contributes metrics.
)

// each returns the parts that offer T.
func each[T any](ps parts) []T {
	var all []T
	for _, p := range ps {
		if t, ok := p.(T); ok {
			all = append(all, t)
		}
	}
	return all
}

func (ps parts) open() error {
	for _, o := range each[Opener](ps) {
		if err := o.Open(); err != nil {
			return err
		}
	}
	return nil
}

func (ps parts) close() {
	for _, c := range each[Closer](ps) {
		c.Close()
	}
}

// run runs the parts until ctx ends or one of them fails.
func (ps parts) run(ctx context.Context) error {
	var fs []func(context.Context) error
	for _, r := range each[Runner](ps) {
		fs = append(fs, r.Run)
	}
	for _, r := range each[interface{ Run(context.Context) }](ps) {
		fs = append(fs, func(ctx context.Context) error { r.Run(ctx); return nil })
	}
	return together(ctx, fs...)
}

func (ps parts) notify(ch chan<- struct{}) {
	for _, f := range each[Follower](ps) {
		f.Notify(ch)
	}
}

func (ps parts) conditions() (all []metav1.Condition) {
	for _, c := range each[Conditioner](ps) {
		all = slices.Concat(all, c.Conditions())
	}
	return all
}

// unready is the answer of the first part that is not ready.
func (ps parts) unready() (reason, message string) {
	for _, r := range each[Readier](ps) {
		if reason, message := r.Unready(); message != "" {
			return reason, message
		}
	}
	return "", ""
}

func (ps parts) unsettled() string {
	for _, s := range each[Settler](ps) {
		if message := s.Unsettled(); message != "" {
			return message
		}
	}
	return ""
}

func (ps parts) collectors() []prometheus.Collector { return each[prometheus.Collector](ps) }

// together runs each function until all have ended; the first error ends the
// others by their context.
func together(ctx context.Context, fs ...func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var first error
	var once sync.Once
	for _, f := range fs {
		wg.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				once.Do(func() { first = err })
				cancel(err)
			}
		})
	}
	wg.Wait()
	return first
}
