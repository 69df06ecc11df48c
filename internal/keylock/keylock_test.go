package keylock

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestOneHolderForEachKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Map[string]
		var wait sync.WaitGroup
		start := time.Now()
		inside := map[string]int{}
		var mu sync.Mutex // guards inside
		count := func(key string, by int) {
			mu.Lock()
			defer mu.Unlock()
			if inside[key] += by; inside[key] > 1 {
				t.Errorf("%d goroutines hold the lock of %s", inside[key], key)
			}
		}
		for range 10 {
			for _, key := range []string{"a", "b"} {
				wait.Go(func() {
					unlock, err := m.Lock(t.Context(), key)
					if err != nil {
						t.Error(err)
						return
					}
					defer unlock()
					count(key, 1)
					time.Sleep(time.Second)
					count(key, -1)
				})
			}
		}
		wait.Wait()
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("10 holders of 1 s for each of two keys took %s, want 10s", took)
		}
		if len(m.locks) != 0 {
			t.Errorf("%d unused locks are kept", len(m.locks))
		}
	})
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Map[int]
		unlock, err := m.Lock(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		stopped := errors.New("stopped")
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			time.Sleep(time.Second)
			cancel(stopped)
		}()
		if _, err := m.Lock(ctx, 1); err != stopped {
			t.Errorf("Lock returned %v, want the context's cause", err)
		}
		unlock()
		if len(m.locks) != 0 {
			t.Errorf("%d unused locks are kept", len(m.locks))
		}
		if unlock, err = m.Lock(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		unlock()
	})
}
