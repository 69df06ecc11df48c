package agent

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"flock.fritzlab.net/flock/internal/cell"
)

// slow is a selection that takes a while to list.
type slow struct {
	which   string
	changed func()
	synced  atomic.Bool
	ended   atomic.Bool
}

func (s *slow) Run(ctx context.Context) {
	defer s.ended.Store(true)
	select {
	case <-ctx.Done():
		return
	case <-time.After(50 * time.Millisecond):
	}
	s.synced.Store(true)
	s.changed()
	<-ctx.Done()
}

func (s *slow) Synced() bool   { return s.synced.Load() }
func (s *slow) List() []string { return []string{s.which} }

// A selection that changes faster than it is listed is known all the same, and in the end it is
// the last one. Nobody is listed beside it.
func TestFollowing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := following[string]{changed: cell.Signal()}
		var all []*slow
		follow := func(which string) {
			f.follow(t.Context(), which, func(changed func()) followed[string] {
				all = append(all, &slow{which: which, changed: changed})
				return all[len(all)-1]
			})
		}
		known := 0
		for i := range 100 { // half a second
			follow(strconv.Itoa(i))
			if list, ok := f.list(); ok {
				known++
				if at, _ := strconv.Atoi(list[0]); i-at > 25 { // two lists, and a step
					t.Errorf("at %d the selection %d is known", i, at)
				}
			} else if i > 10 {
				t.Errorf("nothing is known at %d", i)
			}
			time.Sleep(5 * time.Millisecond)
		}
		for range 10 {
			follow("99")
			time.Sleep(50 * time.Millisecond)
		}
		if list, ok := f.list(); !ok || list[0] != "99" {
			t.Errorf("in the end %v is known", list)
		}
		if len(all) > 12 {
			t.Errorf("%d lists in half a second, of which each takes 50 ms", len(all))
		}
		synctest.Wait()
		for _, s := range all[:len(all)-1] {
			if !s.ended.Load() {
				t.Errorf("selection %s is still followed", s.which)
			}
		}
		f.stop()
		if _, ok := f.list(); ok || f.listed != "" {
			t.Error("it knows something after its end")
		}
	})
}

// A name that comes and goes stays for a while.
func TestRecentNames(t *testing.T) {
	t.Parallel()
	r, now := recent{}, time.Unix(0, 0)
	need := func(names ...string) string {
		set := map[string]bool{}
		for _, n := range names {
			set[n] = true
		}
		return fmt.Sprint(r.keep(now, set))
	}
	if got := need("web", "api"); got != "[api web]" {
		t.Error(got)
	}
	for i := range 100 {
		now = now.Add(50 * time.Millisecond)
		if got := need([]string{"api", "web"}[i%2:]...); got != "[api web]" {
			t.Fatal(got)
		}
	}
	now = now.Add(keepName)
	if got := need("web"); got != "[web]" || len(r) != 1 {
		t.Error(got)
	}
}
