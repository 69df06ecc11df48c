package kube

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/fields"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// NodeConfigTemplates follows all NodeConfigTemplates.
func (c *Client) NodeConfigTemplates(changed func()) *Cache[*v1alpha1.NodeConfigTemplate] {
	return newCache[*v1alpha1.NodeConfigTemplate](c.flock, "nodeconfigtemplates", &v1alpha1.NodeConfigTemplate{}, fields.Everything(), nil, changed)
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
