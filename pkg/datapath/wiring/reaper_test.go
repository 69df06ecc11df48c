package wiring

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fakeKernel deletes what it is told to, except that the first refusals of each
// link fail.
type fakeKernel struct {
	refusals map[string]int
	batches  [][]string
	gone     []string
	at       []time.Time
}

func (k *fakeKernel) DeleteReleased(links []Link) (gone []Link, err error) {
	var names []string
	for _, l := range links {
		names = append(names, l.HostIf)
		if k.refusals[l.HostIf] > 0 {
			k.refusals[l.HostIf]--
			err = errors.New("device or resource busy")
			continue
		}
		gone = append(gone, l)
		k.gone = append(k.gone, l.HostIf)
	}
	k.batches = append(k.batches, names)
	k.at = append(k.at, time.Now())
	return gone, err
}

func TestReaperTriesAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := &fakeKernel{refusals: map[string]int{"b": 2}}
		var log strings.Builder
		r := NewReaper(k, slog.New(slog.NewTextHandler(&log, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		go r.Run(ctx)
		r.Reap(Link{HostIf: "a", IfIndex: 1}, Link{HostIf: "b", IfIndex: 2}, Link{HostIf: "c", IfIndex: 3})
		time.Sleep(time.Minute)
		cancel()
		synctest.Wait()

		if want := []string{"a", "c", "b"}; !slices.Equal(k.gone, want) {
			t.Errorf("gone %v, want %v", k.gone, want)
		}
		if len(k.batches) != 3 || !slices.Equal(k.batches[2], []string{"b"}) {
			t.Errorf("batches %v, want all and twice b", k.batches)
		}
		if last := k.at[len(k.at)-1].Sub(start); last != 2*retryReap {
			t.Errorf("the last attempt was after %v, want %v", last, 2*retryReap)
		}
		if !strings.Contains(log.String(), "first=b") || !strings.Contains(log.String(), "busy") {
			t.Errorf("the log does not say what is the matter: %s", log.String())
		}
	})
}

func TestReaperEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := &fakeKernel{refusals: map[string]int{"a": 1 << 30}}
		r := NewReaper(k, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		ended := false
		go func() {
			r.Run(ctx)
			ended = true
		}()
		r.Reap(Link{HostIf: "a", IfIndex: 1})
		time.Sleep(retryReap / 2) // while it waits to try again
		cancel()
		synctest.Wait()
		if !ended {
			t.Error("it runs on")
		}
		if len(k.gone) > 0 {
			t.Errorf("%v are gone", k.gone)
		}
	})
}
