// Package kube is flock's side of the API server: what agents and flock-controller follow
// there and what they write. It decides nothing about what the objects say, and nothing
// waits for it that need not: while the API server is away, what was seen last
// stands.
package kube

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Client reaches the API server. Its parts share one connection.
type Client struct {
	flock, core, apps, events, discovery rest.Interface
	metadata                             metadata.Interface
}

// NewClient returns a client with the address and the credentials of c. It does not
// contact the API server. Nor does it limit how much is asked: each caller does, and
// the API server has limits of its own, while client-go's would hold up the ADD of a pod.
func NewClient(c *rest.Config) (*Client, error) {
	c = rest.CopyConfig(c)
	c.QPS = -1
	connection, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, err
	}
	var errs []error
	part := func(path string, gv schema.GroupVersion, add func(*runtime.Scheme) error, contentType string) rest.Interface {
		scheme := runtime.NewScheme()
		c := rest.CopyConfig(c)
		c.APIPath, c.GroupVersion = path, &gv
		c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
		c.ContentType, c.AcceptContentTypes = contentType, contentType+","+runtime.ContentTypeJSON
		client, err := rest.RESTClientForConfigAndClient(c, connection)
		errs = append(errs, add(scheme), err)
		return client
	}
	client := &Client{
		flock:  part("/apis", v1alpha1.GroupVersion, v1alpha1.AddToScheme, runtime.ContentTypeJSON), // a CRD has no protobuf
		core:   part("/api", corev1.SchemeGroupVersion, corev1.AddToScheme, runtime.ContentTypeProtobuf),
		apps:   part("/apis", appsv1.SchemeGroupVersion, appsv1.AddToScheme, runtime.ContentTypeProtobuf),
		events: part("/apis", eventsv1.SchemeGroupVersion, eventsv1.AddToScheme, runtime.ContentTypeProtobuf),

		discovery: part("/apis", discoveryv1.SchemeGroupVersion, discoveryv1.AddToScheme, runtime.ContentTypeProtobuf),
	}
	client.metadata, err = metadata.NewForConfigAndClient(c, connection)
	return client, errors.Join(append(errs, err)...)
}

// Core is for API group core.
func (c *Client) Core() rest.Interface { return c.core }

// Flock is for flock's own API group.
func (c *Client) Flock() rest.Interface { return c.flock }

const nodeConfigs = "nodeconfigs"

// NodeConfig follows the NodeConfig of one node.
func (c *Client) NodeConfig(node string, changed func()) *Cache[*v1alpha1.NodeConfig] {
	return newCache[*v1alpha1.NodeConfig](c.flock, nodeConfigs, &v1alpha1.NodeConfig{}, fields.OneTermEqualSelector("metadata.name", node), nil, changed)
}

// AddressPools follows all AddressPools.
func (c *Client) AddressPools(changed func()) *Cache[*v1alpha1.AddressPool] {
	return newCache[*v1alpha1.AddressPool](c.flock, "addresspools", &v1alpha1.AddressPool{}, fields.Everything(), nil, changed)
}

// PatchStatus makes status that of the NodeConfig called name (JSON merge patch,
// RFC 7396, in which null takes a field away), but for the passwords, the turn to follow
// a template and the overlaps of pod CIDRs, which are flock-controller's.
func (c *Client) PatchStatus(ctx context.Context, name string, status v1alpha1.NodeConfigStatus) error {
	fields := allFields(status)
	for _, field := range []string{"passwords", "templateTurn", "podCIDROverlaps"} {
		delete(fields, field)
	}
	patch, err := json.Marshal(map[string]any{"status": fields})
	if err != nil {
		return err
	}
	return c.flock.Patch(types.MergePatchType).Resource(nodeConfigs).Name(name).SubResource("status").Body(patch).Do(ctx).Error()
}

// allFields are the fields of a struct by their names in JSON, empty ones too, which
// "omitempty" would leave as they are at the API server.
func allFields(object any) map[string]any {
	fields := map[string]any{}
	for field, value := range reflect.ValueOf(object).Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		fields[name] = value.Interface()
	}
	return fields
}
