package wiring

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// reapBatch is how many links are deleted together at most. The kernel waits for its
// RCU readers once for all of them (16 to 40 ms, while others can work), but blocks
// every other request for a quarter of a millisecond for each.
const reapBatch = 32

// A Reaper deletes released links: together those that were queued while it deleted
// the last ones.
type Reaper struct {
	links LinkDeleter
	log   *slog.Logger

	mu     sync.Mutex // guards queued
	queued []Link
	wake   chan struct{}
}

// LinkDeleter is [Host] for the reaper.
type LinkDeleter interface {
	// DeleteReleased deletes links and returns which of them are not there any
	// more.
	DeleteReleased(links []Link) (gone []Link, err error)
}

// retryReap is how long the reaper waits after the kernel refused.
const retryReap = time.Second

// NewReaper makes a Reaper. [Host.WatchGone] reports each link that it deleted.
func NewReaper(links LinkDeleter, log *slog.Logger) *Reaper {
	return &Reaper{links: links, log: log, wake: make(chan struct{}, 1)}
}

// Reap queues links that [Host.TakeDown] returned. It does not wait.
func (r *Reaper) Reap(links ...Link) {
	r.mu.Lock()
	r.queued = append(r.queued, links...)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run deletes what is queued until ctx ends. What is left then is still released
// in the kernel, and [Host.ReleaseOthers] finds it at the next start.
func (r *Reaper) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		r.mu.Lock()
		n := min(len(r.queued), reapBatch)
		batch := r.queued[:n:n]
		r.queued = r.queued[n:]
		more := len(r.queued) > 0
		r.mu.Unlock()
		if len(batch) == 0 {
			continue
		}
		if more {
			r.Reap() // wakes
		}

		left, err := r.delete(batch)
		if len(left) == 0 {
			continue
		}
		r.log.Error("cannot delete released links, will retry", "links", len(left), "first", left[0].HostIf, "retry", retryReap, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryReap):
			r.Reap(left...)
		}
	}
}

func (r *Reaper) delete(batch []Link) (left []Link, err error) {
	gone, err := r.links.DeleteReleased(batch)
	is := make(map[int]bool, len(gone))
	for _, l := range gone {
		is[l.IfIndex] = true
	}
	for _, l := range batch {
		if !is[l.IfIndex] {
			left = append(left, l)
		}
	}
	return left, err
}
