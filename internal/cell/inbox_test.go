package cell

import (
	"slices"
	"sync"
	"testing"
)

func TestInboxKeepsAllInOrder(t *testing.T) {
	t.Parallel()
	const senders, each = 4, 1000
	type message struct{ sender, n int }
	i := NewInbox[message]()
	var sending sync.WaitGroup
	for s := range senders {
		sending.Go(func() {
			for n := range each {
				i.Put(message{s, n})
			}
		})
	}
	got := map[int][]int{}
	for taken := 0; taken < senders*each; {
		<-i.Filled()
		for _, m := range i.Take() {
			got[m.sender] = append(got[m.sender], m.n)
			taken++
		}
	}
	sending.Wait()
	for s := range senders {
		if len(got[s]) != each || !slices.IsSorted(got[s]) {
			t.Errorf("of sender %d came %d messages, in order: %t", s, len(got[s]), slices.IsSorted(got[s]))
		}
	}
	if i.Take() != nil {
		t.Error("the inbox is not empty")
	}
}
