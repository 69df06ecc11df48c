package cell

import (
	"sync"
	"testing"
)

func woken(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func TestFollowersSeeTheLastValue(t *testing.T) {
	t.Parallel()
	var c Cell[[]int]
	a, b := Signal(), Signal()
	c.Notify(a)
	if !woken(a) || woken(a) {
		t.Fatal("a follower is woken once when it begins")
	}
	c.Notify(b)
	woken(b)
	for i := range 3 {
		if !c.Set([]int{i}) {
			t.Errorf("%d is another value", i)
		}
	}
	for _, ch := range []chan struct{}{a, b} {
		if !woken(ch) || woken(ch) {
			t.Error("several changes wake each follower once")
		}
	}
	if got := c.Get(); len(got) != 1 || got[0] != 2 {
		t.Errorf("the value is %v", got)
	}
	if c.Set([]int{2}) || woken(a) {
		t.Error("an equal value is no change")
	}
}

func TestOneFollowerOfManyTopics(t *testing.T) {
	t.Parallel()
	var topic Topic
	c := New("x")
	ch := Signal()
	topic.Notify(ch)
	c.Notify(ch)
	for _, change := range []func(){topic.Wake, func() { c.Set("y") }} {
		woken(ch)
		if change(); !woken(ch) {
			t.Error("a change did not wake the follower")
		}
	}
}

// A follower that has read the value before it waits never misses the last one,
// however many write and follow meanwhile.
func TestNoChangeIsLost(t *testing.T) {
	t.Parallel()
	const last = 10_000
	var c Cell[int]
	var followers sync.WaitGroup
	for range 4 {
		followers.Go(func() {
			ch := Signal()
			c.Notify(ch)
			for range ch {
				if c.Get() == last {
					return
				}
			}
		})
	}
	for i := range last {
		c.Set(i + 1)
	}
	followers.Wait()
}
