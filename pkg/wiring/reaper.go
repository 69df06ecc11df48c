package wiring

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Link groups (IFLA_GROUP) of flock: "flor" for released links, "flod" for those
// that are deleted at this moment. No other link of the node may be in them: the
// latter is deleted as a whole.
const (
	releasedGroup = 0x666c6f72
	deletedGroup  = 0x666c6f64
)

// reapBatch links are deleted together, at most. The kernel waits for its RCU
// readers once for all of them (16 to 40 ms, in which others can work), but holds
// up every other request for a quarter of a millisecond for each.
const reapBatch = 32

// A Reaper deletes released links, together those that have gathered while it
// was at the last ones.
type Reaper struct {
	links LinkDeleter
	gone  func(Link)
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

// NewReaper makes a reaper that calls gone, from its own goroutine, once for
// each link when the kernel has forgotten it: then its addresses' quarantine
// begins or ends.
func NewReaper(links LinkDeleter, gone func(Link), log *slog.Logger) *Reaper {
	return &Reaper{links: links, gone: gone, log: log, wake: make(chan struct{}, 1)}
}

// Reap queues links that [Host.Unroute] returned. It does not wait.
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
// in the kernel, and [Host.Prune] finds it at the next start.
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
		r.log.Error("released links are not gone, trying again", "links", len(left), "first", left[0].HostIf, "in", retryReap, "error", err)
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
		r.gone(l)
	}
	for _, l := range batch {
		if !is[l.IfIndex] {
			left = append(left, l)
		}
	}
	return left, err
}
