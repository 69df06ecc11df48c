//go:build linux

package agent

import "sync"

// turns gives a container's attachment to one goroutine at a time, between looking
// at its link and acting on that: a link's end is told by the kernel at any time,
// in the midst of an ADD too. The zero value is ready.
type turns struct {
	mu sync.Mutex // guards of
	of map[string]*turn
}

type turn struct {
	sync.Mutex
	users int // that have it or wait for it
}

// take waits for the container's turn; the caller gives it back by leave.
func (t *turns) take(containerID string) (leave func()) {
	t.mu.Lock()
	if t.of == nil {
		t.of = map[string]*turn{}
	}
	mine := t.of[containerID]
	if mine == nil {
		mine = &turn{}
		t.of[containerID] = mine
	}
	mine.users++
	t.mu.Unlock()
	mine.Lock()
	return func() {
		mine.Unlock()
		t.mu.Lock()
		defer t.mu.Unlock()
		if mine.users--; mine.users == 0 {
			delete(t.of, containerID)
		}
	}
}
