package kube

import (
	"context"
	"sync"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// Cache is what the API server has told last of one kind of cluster-scoped
// object. It may be read by any goroutine; what it returns must not be changed.
type Cache[T runtime.Object] struct {
	changed  func()
	store    cache.Store
	informer cache.Controller
}

// newCache calls changed, from goroutines of Run, after each change and once
// when all objects are there: an absent object makes no other event.
func newCache[T runtime.Object](r rest.Interface, resource string, kind T, which fields.Selector, trim cache.TransformFunc, changed func()) *Cache[T] {
	c := &Cache[T]{changed: changed}
	c.store, c.informer = cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.NewListWatchFromClient(r, resource, "", which),
		ObjectType:    kind,
		Transform:     trim,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { changed() },
			UpdateFunc: func(any, any) { changed() },
			DeleteFunc: func(any) { changed() },
		},
	})
	return c
}

// Run follows the API server until ctx ends.
func (c *Cache[T]) Run(ctx context.Context) {
	var synced sync.WaitGroup
	synced.Go(func() {
		if cache.WaitForCacheSync(ctx.Done(), c.informer.HasSynced) {
			c.changed()
		}
	})
	c.informer.RunWithContext(ctx)
	synced.Wait()
}

// Synced tells whether the API server has told all there is once. Before, an
// object that is not in the cache may well exist.
func (c *Cache[T]) Synced() bool { return c.informer.HasSynced() }

// Get returns the object called name.
func (c *Cache[T]) Get(name string) (T, bool) {
	var none T
	obj, ok, err := c.store.GetByKey(name)
	if err != nil || !ok {
		return none, false
	}
	return obj.(T), true
}

// List returns all objects, in no order.
func (c *Cache[T]) List() []T {
	objs := c.store.List()
	out := make([]T, len(objs))
	for i, obj := range objs {
		out[i] = obj.(T)
	}
	return out
}
