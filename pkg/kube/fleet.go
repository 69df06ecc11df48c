package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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

// PodCIDRs returns the pod CIDRs of all NodeConfigs, by name, as the API server's cache
// has them. What is transferred is the table that kubectl prints, some 100 bytes for
// each node, and not the kilobytes of spec and status.
func (c *Client) PodCIDRs(ctx context.Context) (map[string][]netip.Prefix, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	raw, err := c.flock.Get().Resource(nodeConfigs).
		SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").
		Param("includeObject", string(metav1.IncludeNone)).Param("resourceVersion", "0").
		Do(ctx).Raw()
	if err != nil {
		return nil, err
	}
	table := &metav1.Table{}
	if err := json.Unmarshal(raw, table); err != nil {
		return nil, fmt.Errorf("the table of NodeConfigs: %w", err)
	}
	var columns [3]int // of name, IPv6 and IPv4
	for i, name := range []string{"Name", "IPv6", "IPv4"} {
		columns[i] = slices.IndexFunc(table.ColumnDefinitions, func(d metav1.TableColumnDefinition) bool { return d.Name == name })
		if columns[i] < 0 {
			return nil, fmt.Errorf("the table of NodeConfigs has no column %s: apply the CRDs that came with this version of flock", name)
		}
	}
	all := map[string][]netip.Prefix{}
	for _, row := range table.Rows {
		name, _ := row.Cells[columns[0]].(string)
		for _, column := range columns[1:] {
			var cidrs []netip.Prefix // null where there are none
			if text, ok := row.Cells[column].(string); ok && json.Unmarshal([]byte(text), &cidrs) != nil {
				return nil, fmt.Errorf("NodeConfig %s: the table's pod CIDRs are %s", name, text)
			}
			all[name] = append(all[name], cidrs...)
		}
	}
	return all, nil
}
