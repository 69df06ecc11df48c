// Package cell holds values that one part of a program writes and others follow.
// Following is level-triggered: a follower is woken, reads what the value is now,
// and acts on that. It may miss values in between, never the last one.
package cell

import (
	"reflect"
	"sync"
)

// Reader is the side of a Cell that its followers get.
type Reader[T any] interface {
	// Get returns the value as it is now. It must not be changed.
	Get() T
	// Notify wakes whoever receives from ch: at once, so that a follower's loop
	// begins with the first value, and after each change.
	Notify(ch chan<- struct{})
}

// Cell is a value with followers. It has one writer: the part that has the Cell
// itself and not its Reader. The zero value holds T's.
type Cell[T any] struct {
	Topic
	mu    sync.Mutex // guards value
	value T
}

// New returns a Cell that holds v.
func New[T any](v T) *Cell[T] { return &Cell[T]{value: v} }

// Get implements Reader.
func (c *Cell[T]) Get() T {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.value
}

// Set replaces the value and says whether v is another one (reflect.DeepEqual).
// Only then followers are woken.
func (c *Cell[T]) Set(v T) (changed bool) {
	c.mu.Lock()
	changed = !reflect.DeepEqual(c.value, v)
	c.value = v
	c.mu.Unlock()
	if changed {
		c.Wake()
	}
	return changed
}

// Topic is a list of followers without a value: for state that somebody else
// holds, such as a cache. The zero value is ready.
type Topic struct {
	mu        sync.Mutex // guards followers
	followers []chan<- struct{}
}

// Notify has ch woken at once and by each Wake. One channel may follow many topics.
func (t *Topic) Notify(ch chan<- struct{}) {
	t.mu.Lock()
	t.followers = append(t.followers, ch)
	t.mu.Unlock()
	Wake(ch)
}

// Wake wakes all followers. It never waits.
func (t *Topic) Wake() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, ch := range t.followers {
		Wake(ch)
	}
}

// Signal makes a channel for Notify. Woken several times before it is received
// from, it is received from once.
func Signal() chan struct{} { return make(chan struct{}, 1) }

// Wake wakes who receives from ch, a channel made by Signal.
func Wake(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
