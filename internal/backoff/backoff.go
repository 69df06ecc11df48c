// Package backoff computes how long to wait before the next attempt.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff starts at First and doubles with each failure up to Last. It belongs to
// one goroutine.
type Backoff struct {
	First, Last time.Duration
	// Jitter is the largest fraction of a delay that is added to it at random, so
	// that nodes that failed together do not retry together. Last bounds a delay
	// before that.
	Jitter float64

	delay time.Duration // of the next attempt; 0 stands for First
}

// Next returns the delay before the next attempt and doubles the one after it.
func (b *Backoff) Next() time.Duration {
	delay := max(b.delay, b.First)
	b.delay = min(2*delay, b.Last)
	if spread := time.Duration(b.Jitter * float64(delay)); spread > 0 {
		delay += rand.N(spread)
	}
	return delay
}

// Reset goes back to First. Call it after an attempt that succeeded.
func (b *Backoff) Reset() { b.delay = 0 }

// Wait waits for Next. Its error is the context's cause.
func (b *Backoff) Wait(ctx context.Context) error { return Sleep(ctx, b.Next()) }

// Sleep waits for d. Its error is the context's cause.
func Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
