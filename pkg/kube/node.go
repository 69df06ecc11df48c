package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
)

const (
	nodes       = "nodes"
	nodeTimeout = 10 * time.Second
)

// Node follows the Node object of one node, of which only what a template takes from
// it is kept (name, UID, labels, pod CIDRs and addresses), taints, conditions and the
// versions of its software, and whether it is cordoned or being deleted.
func (c *Client) Node(name string, changed func()) *Cache[*corev1.Node] {
	only := func(obj any) (any, error) {
		if n, ok := obj.(*corev1.Node); ok {
			n.ObjectMeta = metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Labels: n.Labels, DeletionTimestamp: n.DeletionTimestamp}
			n.Spec = corev1.NodeSpec{PodCIDRs: n.Spec.PodCIDRs, Taints: n.Spec.Taints, Unschedulable: n.Spec.Unschedulable}
			n.Status = corev1.NodeStatus{Addresses: n.Status.Addresses, Conditions: n.Status.Conditions, NodeInfo: n.Status.NodeInfo}
		}
		return obj, nil
	}
	return newCache[*corev1.Node](c.core, nodes, &corev1.Node{}, fields.OneTermEqualSelector("metadata.name", name), only, changed)
}

// SetNodeCondition makes condition the one of its type of a Node.
func (c *Client) SetNodeCondition(ctx context.Context, node string, condition corev1.NodeCondition) error {
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{condition}}})
	if err != nil {
		return err
	}
	return c.core.Patch(types.StrategicMergePatchType).Resource(nodes).Name(node).SubResource("status").Body(patch).Do(ctx).Error()
}

// RemoveNodeTaints takes from a Node the taints at these indexes, the last first. If
// one of them does not have that key any more, nothing is changed, and the error is
// Invalid.
func (c *Client) RemoveNodeTaints(ctx context.Context, node, key string, at []int) error {
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	var patch []map[string]string
	for _, i := range at {
		path := fmt.Sprintf("/spec/taints/%d", i)
		patch = append(patch, map[string]string{"op": "test", "path": path + "/key", "value": key}, map[string]string{"op": "remove", "path": path})
	}
	body, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	return c.core.Patch(types.JSONPatchType).Resource(nodes).Name(node).Body(body).Do(ctx).Error()
}

// GetNode reads a Node.
func (c *Client) GetNode(ctx context.Context, name string) (*corev1.Node, error) {
	node := &corev1.Node{}
	return node, c.core.Get().Resource(nodes).Name(name).Do(ctx).Into(node)
}

// GetDaemonSet reads a DaemonSet.
func (c *Client) GetDaemonSet(ctx context.Context, namespace, name string) (*appsv1.DaemonSet, error) {
	ds := &appsv1.DaemonSet{}
	return ds, c.apps.Get().Namespace(namespace).Resource(daemonSets).Name(name).Do(ctx).Into(ds)
}
