// Package keylock provides one lock for each key.
package keylock

import (
	"context"
	"sync"
)

// Map holds the locks of keys in use. Its zero value is ready. It keeps
// nothing for a key without a holder or a waiter.
type Map[K comparable] struct {
	mu    sync.Mutex // guards locks, and the users of each
	locks map[K]*lock
}

type lock struct {
	held  chan struct{} // has an element while the lock is held
	users int           // that hold the lock or wait for it
}

// Lock waits until the key's lock is free and takes it. The caller calls unlock
// once. The error is the context's cause; the lock is not taken then.
func (m *Map[K]) Lock(ctx context.Context, key K) (unlock func(), err error) {
	m.mu.Lock()
	if m.locks == nil {
		m.locks = map[K]*lock{}
	}
	l := m.locks[key]
	if l == nil {
		l = &lock{held: make(chan struct{}, 1)}
		m.locks[key] = l
	}
	l.users++
	m.mu.Unlock()

	leave := func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(m.locks, key)
		}
	}
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}
