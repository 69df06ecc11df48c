// Package departure distinguishes the planned departure of a node from a restart of flock
// on it.
// Over a restart, routers keep the node's routes (RFC 4724). A node that leaves must not
// leave them behind: it withdraws its anycast addresses, asks routers to prefer other
// paths (RFC 8326), and ends its sessions with a Cease.
//
// The decision is pure and made again whenever the Node, its NodeConfig or the DaemonSet
// changes. While in doubt it is a restart, which costs no running pod its connections.
package departure

import (
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Facts are what the decision depends on.
type Facts struct {
	NodeName string
	Node     *corev1.Node // nil: there is none (any more)
	// DaemonSet that flock's pod on the node belongs to; nil: not known.
	DaemonSet *appsv1.DaemonSet
	// DaemonSetDeleted: there was one, and it has been deleted.
	DaemonSetDeleted bool
	// NodeConfig of the node; nil: there is none.
	NodeConfig *v1alpha1.NodeConfig
}

// Decision is what a node is to do.
type Decision struct {
	// Withdraw the anycast addresses now, and ask routers to prefer other paths to the
	// rest.
	Withdraw bool
	// Leave: if BIRD is stopped now, the node leaves the network.
	Leave bool
	// Reason for the operator; empty where neither is decided.
	Reason string
}

// Decide says whether the node is leaving.
func Decide(f Facts) Decision {
	leave := func(withdraw bool, format string, args ...any) Decision {
		return Decision{withdraw, true, fmt.Sprintf(format, args...)}
	}
	switch ds := f.DaemonSet; {
	case f.DaemonSetDeleted || ds != nil && ds.DeletionTimestamp != nil:
		return leave(true, "flock's DaemonSet has been deleted")
	case f.NodeConfig != nil && f.NodeConfig.Annotations[v1alpha1.DrainAnnotation] != "":
		return leave(true, "flockctl drain %s (undo: flockctl drain %s --undo)", f.NodeName, f.NodeName)
	case f.Node == nil:
		// The kubelet registers it again, if it is still there.
		return leave(false, "Node %s has been deleted", f.NodeName)
	case f.Node.DeletionTimestamp != nil:
		return leave(true, "Node %s is being deleted", f.NodeName)
	case shutsDown(f.Node):
		return leave(true, "Node %s is shutting down", f.NodeName)
	case unselected(f.Node, ds):
		return leave(true, "Node %s no longer has the labels that flock's DaemonSet selects: %s", f.NodeName, labels.FormatLabels(ds.Spec.Template.Spec.NodeSelector))
	case f.Node.Spec.Unschedulable && !rollsOut(ds):
		return leave(false, "Node %s is cordoned", f.NodeName)
	}
	return Decision{}
}

// unselected reports whether the DaemonSet does not select the node, so that its controller
// deletes flock's pod there.
func unselected(n *corev1.Node, ds *appsv1.DaemonSet) bool {
	return n != nil && ds != nil && !labels.SelectorFromSet(ds.Spec.Template.Spec.NodeSelector).Matches(labels.Set(n.Labels))
}

// shutsDown reports whether the kubelet is in its graceful shutdown (KEP-2000).
func shutsDown(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status != corev1.ConditionTrue && strings.Contains(c.Message, "node is shutting down")
		}
	}
	return false
}

// rollsOut reports whether pods of the DaemonSet are being replaced, so that the end of
// one is no departure.
func rollsOut(ds *appsv1.DaemonSet) bool {
	return ds != nil && (ds.Status.ObservedGeneration != ds.Generation || ds.Status.UpdatedNumberScheduled < ds.Status.DesiredNumberScheduled)
}
