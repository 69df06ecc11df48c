// Package kube is the agent's side of the API server: what it follows there and
// what it writes. It decides nothing about what the objects say, and nothing
// waits for it that need not: while the API server is away, what was seen last
// stands.
package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Client reaches the API server.
type Client struct {
	flock, core rest.Interface
}

// NewClient returns a client with the address and the credentials of c.
func NewClient(c *rest.Config) (*Client, error) {
	flock, err := restClient(c, "/apis", v1alpha1.GroupVersion, v1alpha1.AddToScheme)
	if err != nil {
		return nil, err
	}
	core, err := restClient(c, "/api", corev1.SchemeGroupVersion, corev1.AddToScheme)
	if err != nil {
		return nil, err
	}
	return &Client{flock, core}, nil
}

func restClient(c *rest.Config, path string, gv schema.GroupVersion, add func(*runtime.Scheme) error) (rest.Interface, error) {
	scheme := runtime.NewScheme()
	if err := add(scheme); err != nil {
		return nil, err
	}
	c = rest.CopyConfig(c)
	c.GroupVersion = &gv
	c.APIPath = path
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	return rest.RESTClientFor(c)
}

const nodeConfigs = "nodeconfigs"

// NodeConfig follows the NodeConfig of one node.
func (c *Client) NodeConfig(node string, changed func()) *Cache[*v1alpha1.NodeConfig] {
	return newCache[*v1alpha1.NodeConfig](c.flock, nodeConfigs, &v1alpha1.NodeConfig{}, fields.OneTermEqualSelector("metadata.name", node), nil, changed)
}

// AddressPools follows all AddressPools.
func (c *Client) AddressPools(changed func()) *Cache[*v1alpha1.AddressPool] {
	return newCache[*v1alpha1.AddressPool](c.flock, "addresspools", &v1alpha1.AddressPool{}, fields.Everything(), nil, changed)
}

// Namespaces follows all namespaces, of which only name and labels are kept.
func (c *Client) Namespaces() *Cache[*corev1.Namespace] {
	onlyLabels := func(obj any) (any, error) {
		if ns, ok := obj.(*corev1.Namespace); ok {
			ns.ObjectMeta = metav1.ObjectMeta{Name: ns.Name, ResourceVersion: ns.ResourceVersion, Labels: ns.Labels}
			ns.Spec, ns.Status = corev1.NamespaceSpec{}, corev1.NamespaceStatus{}
		}
		return obj, nil
	}
	return newCache[*corev1.Namespace](c.core, "namespaces", &corev1.Namespace{}, fields.Everything(), onlyLabels, func() {})
}

// ErrNoSecret says that there is no such Secret, or that it has no such key.
var ErrNoSecret = errors.New("there is no such Secret, or it has no such key")

// SecretKey reads one key of a Secret. ErrNoSecret is in the chain of the error if
// the API server has answered that there is none.
func (c *Client) SecretKey(ctx context.Context, namespace, name, key string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	secret := &corev1.Secret{}
	err := c.core.Get().Namespace(namespace).Resource("secrets").Name(name).Do(ctx).Into(secret)
	if apierrors.IsNotFound(err) {
		return nil, ErrNoSecret
	}
	if err != nil {
		return nil, fmt.Errorf("secret %s/%s: %w", namespace, name, err)
	}
	value, ok := secret.Data[key]
	if !ok {
		return nil, ErrNoSecret
	}
	return value, nil
}

// PatchStatus makes status that of the NodeConfig called name (JSON merge patch,
// RFC 7396, in which null takes a field away).
func (c *Client) PatchStatus(ctx context.Context, name string, status v1alpha1.NodeConfigStatus) error {
	patch, err := json.Marshal(map[string]any{"status": map[string]any{
		"conditions":         status.Conditions,
		"observedGeneration": status.ObservedGeneration,
		"podSource":          status.PodSource,
		"exitSource":         status.ExitSource,
		"retiredCIDRs":       status.RetiredCIDRs,
		"sessions":           status.Sessions,
		"anycast":            status.Anycast,
	}})
	if err != nil {
		return err
	}
	return c.flock.Patch(types.MergePatchType).Resource(nodeConfigs).Name(name).SubResource("status").Body(patch).Do(ctx).Error()
}
