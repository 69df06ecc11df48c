// Package nodeconfig follows the NodeConfig of one node: from the API server
// while it answers, from the last good copy on the node when the agent starts
// without it, so that a node that has served pods can do so again with the API
// server down. It decides nothing about what the object says.
package nodeconfig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

const resource = "nodeconfigs"

// Client reaches flock's objects on the API server.
type Client struct {
	rest rest.Interface
}

// NewClient returns a client for flock's API group, with the address and the
// credentials of c.
func NewClient(c *rest.Config) (*Client, error) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	c = rest.CopyConfig(c)
	c.GroupVersion = &v1alpha1.GroupVersion
	c.APIPath = "/apis"
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	r, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, err
	}
	return &Client{r}, nil
}

// Watch calls deliver with the NodeConfig called name, first as soon as the API
// server has told it whether there is one and then at each change, until ctx
// ends. nil stands for: there is none. Calls come one at a time; while the API
// server is away there are none. The object must not be changed.
func (c *Client) Watch(ctx context.Context, name string, deliver func(*v1alpha1.NodeConfig)) {
	var store cache.Store
	var mu sync.Mutex // orders the deliveries: each reads the store's latest
	report := func() {
		mu.Lock()
		defer mu.Unlock()
		for _, obj := range store.List() {
			deliver(obj.(*v1alpha1.NodeConfig))
			return
		}
		deliver(nil)
	}
	store, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.NewListWatchFromClient(c.rest, resource, "", fields.OneTermEqualSelector("metadata.name", name)),
		ObjectType:    &v1alpha1.NodeConfig{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { report() },
			UpdateFunc: func(any, any) { report() },
			DeleteFunc: func(any) { report() },
		},
	})
	go func() {
		// An absent object makes no event.
		if cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
			report()
		}
	}()
	informer.RunWithContext(ctx)
}

// PatchStatus sets what status holds on the NodeConfig called name and leaves
// the rest as it is (JSON merge patch, RFC 7396).
func (c *Client) PatchStatus(ctx context.Context, name string, status v1alpha1.NodeConfigStatus) error {
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return err
	}
	return c.rest.Patch(types.MergePatchType).Resource(resource).Name(name).SubResource("status").Body(patch).Do(ctx).Error()
}

// Save keeps nc at path for Load, atomically.
func Save(path string, nc *v1alpha1.NodeConfig) error {
	b, err := json.Marshal(nc)
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// Load returns what Save kept at path; nil without an error if there is nothing.
func Load(path string) (*v1alpha1.NodeConfig, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	nc := &v1alpha1.NodeConfig{}
	if err := json.Unmarshal(b, nc); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return nc, nil
}
