package cell

import "sync"

// Inbox keeps messages, without bound, until they are taken. Who puts one in never waits.
// It has one reader, which is woken by Filled and then takes all that is there.
type Inbox[T any] struct {
	mu       sync.Mutex // guards messages
	messages []T
	filled   chan struct{}
}

// NewInbox returns an empty Inbox.
func NewInbox[T any]() *Inbox[T] { return &Inbox[T]{filled: Signal()} }

// Filled wakes the reader after a Put.
func (i *Inbox[T]) Filled() <-chan struct{} { return i.filled }

// Put adds a message behind the others.
func (i *Inbox[T]) Put(m T) {
	i.mu.Lock()
	i.messages = append(i.messages, m)
	i.mu.Unlock()
	Wake(i.filled)
}

// Take empties the Inbox and returns what was in it, in the order of Put.
func (i *Inbox[T]) Take() []T {
	i.mu.Lock()
	defer i.mu.Unlock()
	messages := i.messages
	i.messages = nil
	return messages
}
