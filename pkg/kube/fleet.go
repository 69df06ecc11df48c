package kube

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// NodeConfigTemplates follows all NodeConfigTemplates.
func (c *Client) NodeConfigTemplates(changed func()) *Cache[*v1alpha1.NodeConfigTemplate] {
	return newCache[*v1alpha1.NodeConfigTemplate](c.flock, "nodeconfigtemplates", &v1alpha1.NodeConfigTemplate{}, fields.Everything(), nil, changed)
}

// Node follows the Node object of one node, of which only what a template takes from
// it is kept: name, UID, labels, pod CIDRs and addresses.
func (c *Client) Node(name string, changed func()) *Cache[*corev1.Node] {
	only := func(obj any) (any, error) {
		if n, ok := obj.(*corev1.Node); ok {
			n.ObjectMeta = metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Labels: n.Labels}
			n.Spec = corev1.NodeSpec{PodCIDRs: n.Spec.PodCIDRs}
			n.Status = corev1.NodeStatus{Addresses: n.Status.Addresses}
		}
		return obj, nil
	}
	return newCache[*corev1.Node](c.core, "nodes", &corev1.Node{}, fields.OneTermEqualSelector("metadata.name", name), only, changed)
}

const writeTimeout = 10 * time.Second

// CreateNodeConfig creates nc; that there is one of its name already is an error.
func (c *Client) CreateNodeConfig(ctx context.Context, nc *v1alpha1.NodeConfig) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	return c.flock.Post().Resource(nodeConfigs).Body(nc).Do(ctx).Error()
}

// UpdateNodeConfig replaces the NodeConfig, but for its status, if it has not changed
// since nc.ResourceVersion; else the error is a conflict.
func (c *Client) UpdateNodeConfig(ctx context.Context, nc *v1alpha1.NodeConfig) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	return c.flock.Put().Resource(nodeConfigs).Name(nc.Name).Body(nc).Do(ctx).Error()
}
