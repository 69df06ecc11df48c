package kube

import (
	"context"
	"sync"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// Cache has the newest known objects of one kind. Any goroutine may
// read it. The returned objects must not be changed.
type Cache[T runtime.Object] struct {
	changed  func()
	store    cache.Store
	informer cache.Controller
}

// newCache calls changed, from goroutines of Run, after each change and once
// when all objects are there: an absent object makes no other event.
func newCache[T runtime.Object](r rest.Interface, resource string, kind T, which fields.Selector, trim cache.TransformFunc, changed func()) *Cache[T] {
	return newCacheFrom(cache.NewListWatchFromClient(r, resource, "", which), kind, trim, changed)
}

func newCacheFrom[T runtime.Object](from cache.ListerWatcher, kind T, trim cache.TransformFunc, changed func()) *Cache[T] {
	c := &Cache[T]{changed: changed}
	c.store, c.informer = cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: from,
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

// Synced reports whether the first list is complete. Before that, an object that is
// not in the cache may exist.
func (c *Cache[T]) Synced() bool { return c.informer.HasSynced() }

// Get returns the object called name, or namespace/name if its kind has namespaces.
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
