//go:build linux

package agent

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"flock.fritzlab.net/flock/internal/cell"
)

// followed are objects of one selection at the API server, as a [kube.Cache] has them.
type followed[T any] interface {
	Run(ctx context.Context)
	Synced() bool
	List() []T
}

// following follows a selection of objects, which changes. While another selection is being
// listed, what was known of the last one stays. What has begun to be listed is not given up for
// a newer selection: whoever changes it faster than the API server lists would keep the agent
// from knowing anything.
type following[T any] struct {
	changed chan struct{}

	running sync.WaitGroup
	cache   followed[T] // the one in use
	listed  string      // its selection
	cancel  context.CancelFunc
	next    followed[T] // the one that takes its place once it is complete
	which   string      // its selection
	abandon context.CancelFunc
}

// follow makes which the selection: at once, or when the one before it has been listed, of
// which changed is notified.
func (f *following[T]) follow(ctx context.Context, which string, start func(changed func()) followed[T]) {
	f.promote()
	if f.next != nil || f.cache != nil && f.listed == which {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	cache := start(func() { cell.Wake(f.changed) })
	f.which, f.next, f.abandon = which, cache, cancel
	f.running.Go(func() { cache.Run(ctx) })
}

// promote puts the next selection into the place of the one in use, if it is complete.
func (f *following[T]) promote() {
	if f.next == nil || !f.next.Synced() {
		return
	}
	if f.cancel != nil {
		f.cancel()
	}
	f.cache, f.listed, f.cancel = f.next, f.which, f.abandon
	f.next, f.which, f.abandon = nil, "", nil
}

// list is what is known; false if that is nothing.
func (f *following[T]) list() ([]T, bool) {
	f.promote()
	if f.cache == nil {
		return nil, false
	}
	return f.cache.List(), true
}

// stop ends following, and waits for it.
func (f *following[T]) stop() {
	for _, cancel := range []context.CancelFunc{f.cancel, f.abandon} {
		if cancel != nil {
			cancel()
		}
	}
	f.running.Wait()
	*f = following[T]{changed: f.changed}
}

// keepName is how long a name stays in the selection after it was needed: a tenant who has it
// come and go again and again would cost the API server a list for each node each time.
const keepName = 10 * time.Minute

// recent are names with the time at which each was needed last.
type recent map[string]time.Time

// keep returns the names that are needed now or were a short time ago, sorted.
func (r recent) keep(now time.Time, needed map[string]bool) []string {
	for name := range needed {
		r[name] = now
	}
	maps.DeleteFunc(r, func(_ string, at time.Time) bool { return now.Sub(at) >= keepName })
	return slices.Sorted(maps.Keys(r))
}
