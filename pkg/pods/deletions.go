package pods

import (
	"context"
	"log/slog"

	"k8s.io/client-go/rest"
)

// Deletions tells of pods of one node that are to be deleted, as soon as the API
// server does: the kubelet's Pods API says so tens of milliseconds later, a busy
// one hundreds, when the containers have their SIGTERM already. It is for nodes
// where that matters: while it watches, the API server sends each change of the
// node's pods to it as well as to the kubelet.
type Deletions struct{ api *apiserver }

// NewDeletions returns the Deletions of a node's pods. Nothing is contacted yet.
func NewDeletions(api *rest.Config, node string, log *slog.Logger) (*Deletions, error) {
	a, err := newAPIServer(api, node, log)
	if err != nil {
		return nil, err
	}
	return &Deletions{a}, nil
}

// Watch tells the UID of each pod with a deletion timestamp, one call at a time
// and possibly more than once, until ctx ends. While the API server cannot be
// reached it tells nothing. What it tells is never taken back: nothing takes a
// deletion timestamp from a pod.
func (d *Deletions) Watch(ctx context.Context, f func(uid string)) {
	look := func(p *Pod) {
		// The deletion of a mirror leaves its static pod as it is.
		if _, mirror := p.Annotations[mirrorAnnotation]; !mirror && !p.Deletion.IsZero() {
			f(p.UID)
		}
	}
	d.api.follow(ctx, func(r report) {
		for _, p := range r.list {
			look(p)
		}
		if r.pod != nil {
			look(r.pod)
		}
	})
}
