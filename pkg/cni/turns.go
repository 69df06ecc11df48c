package cni

import (
	"context"
	"sync"
)

// turns lets one call at a time through for each key. The zero value is ready.
type turns struct {
	mu   sync.Mutex // guards keys
	keys map[string]*turn
}

type turn struct {
	token chan struct{} // holds one token while nobody is inside
	users int           // inside or waiting
}

// enter waits until nobody is inside for key. The caller leaves by the returned
// function. The error is the context's.
func (t *turns) enter(ctx context.Context, key string) (leave func(), err error) {
	t.mu.Lock()
	if t.keys == nil {
		t.keys = map[string]*turn{}
	}
	k, there := t.keys[key]
	if !there {
		k = &turn{token: make(chan struct{}, 1)}
		k.token <- struct{}{}
		t.keys[key] = k
	}
	k.users++
	t.mu.Unlock()

	forget := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(t.keys, key)
		}
	}
	select {
	case <-k.token:
		return func() { k.token <- struct{}{}; forget() }, nil
	case <-ctx.Done():
		forget()
		return nil, context.Cause(ctx)
	}
}
