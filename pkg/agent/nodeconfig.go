//go:build linux

package agent

import (
	"context"
	"log/slog"
	"reflect"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/kube"
)

// observed is the node's NodeConfig as it was seen last, parsed.
type observed struct {
	object *v1alpha1.NodeConfig // nil if there is none, or none is known yet
	node   config.Node
	err    error // why spec cannot be applied
	cached bool  // the object is this node's copy: the API server has not answered
	synced bool  // the API server has said all there is
}

// same says whether o and p have the same spec.
func (o observed) same(p observed) bool {
	return o.object != nil && p.object != nil && o.object.UID == p.object.UID && o.object.Generation == p.object.Generation
}

// nodeConfigs observes the node's NodeConfig, at first the copy on the node, and
// parses it once for each generation.
type nodeConfigs struct {
	node    string
	path    string // of the copy
	kept    *kube.Kept[*v1alpha1.NodeConfig]
	cache   *kube.Cache[*v1alpha1.NodeConfig]
	changed *cell.Topic // of cache
	log     *slog.Logger

	cell.Cell[observed]
}

// open reads the copy.
func (n *nodeConfigs) open() (err error) {
	if n.kept, err = kube.OpenKept(n.path, sameCopy, n.log); err != nil {
		return err
	}
	switch kept := n.kept.Get(); {
	case kept == nil:
	case kept.Name != n.node:
		n.log.Warn("ignoring the cached NodeConfig of another node", "nodeConfig", kept.Name, "node", n.node)
	default:
		node, err := config.ParseNode(kept)
		n.Set(observed{object: kept, node: node, err: err, cached: true})
	}
	return nil
}

// sameCopy: what of a NodeConfig matters to a start is the same in both.
func sameCopy(a, b *v1alpha1.NodeConfig) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.UID == b.UID && a.Generation == b.Generation && reflect.DeepEqual(a.Status.Passwords, b.Status.Passwords)
}

// Run follows the API server.
func (n *nodeConfigs) Run(ctx context.Context) error {
	changed := cell.Signal()
	n.changed.Notify(changed)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.kept.Due():
			n.kept.Retry()
			continue
		case <-changed:
		}
		before := n.Get()
		now := observed{synced: n.cache.Synced()} // first: what comes later is in the cache
		object, ok := n.cache.Get(n.node)
		switch {
		case !ok && !now.synced:
			continue
		case ok:
			now.object = object
			if now.same(before) {
				now.node, now.err = before.node, before.err
			} else {
				now.node, now.err = config.ParseNode(object)
			}
			if now.err == nil {
				n.kept.Save(object)
			}
		}
		n.Set(now)
	}
}
