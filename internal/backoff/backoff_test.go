package backoff

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestDelaysDoubleUntilReset(t *testing.T) {
	b := Backoff{First: time.Second, Last: 5 * time.Second}
	next := func(n int) (delays []time.Duration) {
		for range n {
			delays = append(delays, b.Next()/time.Second)
		}
		return delays
	}
	if got, want := next(5), []time.Duration{1, 2, 4, 5, 5}; !slices.Equal(got, want) {
		t.Errorf("delays are %d s, want %d s", got, want)
	}
	b.Reset()
	if got, want := next(2), []time.Duration{1, 2}; !slices.Equal(got, want) {
		t.Errorf("after Reset delays are %d s, want %d s", got, want)
	}
}

func TestJitterAddsAFraction(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 1000 {
		b := Backoff{First: time.Second, Last: time.Second, Jitter: 0.5}
		d := b.Next()
		if d < time.Second || d >= 1500*time.Millisecond {
			t.Fatalf("delay is %s, want 1 s to 1.5 s", d)
		}
		seen[d] = true
		if again := b.Next(); again < time.Second || again >= 1500*time.Millisecond {
			t.Fatalf("the next delay is %s: the jitter of one must not grow into the other", again)
		}
	}
	if len(seen) < 100 {
		t.Errorf("1,000 delays have %d values", len(seen))
	}
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := Backoff{First: time.Second, Last: time.Minute}
		start := time.Now()
		for range 3 {
			if err := b.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got := time.Since(start); got != 7*time.Second {
			t.Errorf("three waits took %s, want 7s", got)
		}
		stopped := errors.New("stopped")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(stopped) })
		if err := b.Wait(ctx); err != stopped {
			t.Errorf("Wait returned %v, want the context's cause", err)
		}
		if got := time.Since(start); got != 8*time.Second {
			t.Errorf("Wait returned after %s, want 8s", got)
		}
	})
}
