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
	cache   *kube.Cache[*v1alpha1.NodeConfig]
	changed *cell.Topic // of cache
	log     *slog.Logger

	cell.Cell[observed]
}

// open reads the copy.
func (n *nodeConfigs) open() {
	kept, err := kube.Load[v1alpha1.NodeConfig](n.path)
	switch {
	case err != nil:
		n.log.Warn("cannot read the cached NodeConfig", "error", err)
	case kept == nil:
	case kept.Name != n.node:
		n.log.Warn("ignoring the cached NodeConfig of another node", "nodeConfig", kept.Name, "node", n.node)
	default:
		node, err := config.ParseNode(kept)
		n.Set(observed{object: kept, node: node, err: err, cached: true})
	}
}

// Run follows the API server.
func (n *nodeConfigs) Run(ctx context.Context) error {
	changed := cell.Signal()
	n.changed.Notify(changed)
	for {
		select {
		case <-ctx.Done():
			return nil
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
			same := now.same(before)
			if same {
				now.node, now.err = before.node, before.err
			} else {
				now.node, now.err = config.ParseNode(object)
			}
			if now.err != nil || same && reflect.DeepEqual(object.Status.Passwords, before.object.Status.Passwords) {
				break
			}
			if err := kube.Save(n.path, object); err != nil {
				n.log.Warn("cannot cache the NodeConfig for a start without the API server", "error", err)
			}
		}
		n.Set(now)
	}
}
