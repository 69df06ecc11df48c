package source

import (
	"context"
	"log/slog"

	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/pkg/pod"
)

// Deletions reports pods of one node that are being deleted, as soon as the API server
// does. The kubelet's Pods API reports them tens of milliseconds later, a busy kubelet
// hundreds, when the containers already have their SIGTERM. Use it only on nodes where
// that matters: while it watches, the API server sends each change of the node's pods to
// it as well as to the kubelet.
type Deletions struct{ api *apiserver }

// NewDeletions returns the Deletions of a node's pods; api is of API group core. Nothing
// is contacted yet.
func NewDeletions(api rest.Interface, node string, log *slog.Logger) *Deletions {
	return &Deletions{&apiserver{node, api, log}}
}

// Watch calls f with the UID of each pod with a deletion timestamp, one call at a time and
// possibly more than once, until ctx ends. While the API server cannot be reached it
// reports nothing. Nothing removes a deletion timestamp from a pod.
func (d *Deletions) Watch(ctx context.Context, f func(pod.UID)) {
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
