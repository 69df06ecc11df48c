package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
)

// fake is a feature with some objects that somebody may break.
type fake struct {
	mu     sync.Mutex
	broken []string
	err    error
	takes  time.Duration
	looks  []time.Time
}

func (f *fake) Name() string         { return "fake" }
func (f *fake) Kinds() []kernel.Kind { return []kernel.Kind{kernel.Route} }

func (f *fake) Sync(context.Context) (repairs []datapath.Repair, err error) {
	time.Sleep(f.takes)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks = append(f.looks, time.Now())
	if f.err != nil {
		return nil, f.err
	}
	for _, b := range f.broken {
		repairs = append(repairs, datapath.Repair{Kind: kernel.Route, Object: b, Found: datapath.Missing})
	}
	f.broken = nil
	return repairs, nil
}

func (f *fake) damage(w *Watcher, by string, objects ...string) {
	f.mu.Lock()
	f.broken = append(f.broken, objects...)
	f.mu.Unlock()
	w.changed(kernel.Route, by)
}

func (f *fake) fail(err error) {
	f.mu.Lock()
	f.err = err
	f.mu.Unlock()
}

func (f *fake) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.looks)
}

// start runs the features' loops, without a kernel.
func start(t *testing.T, c Config) *Watcher {
	w := newWatcher(c)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, r := range w.runners {
		began := time.Now()
		r.cpuTime = func() time.Duration { return time.Since(began) } // that of the test's time
		running.Go(func() { r.run(ctx) })
	}
	t.Cleanup(func() { cancel(); running.Wait() })
	synctest.Wait()
	return w
}

func TestLooksAtOnceOnChangesAndNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		w := start(t, Config{Features: []datapath.Feature{f}})
		if f.count() != 1 {
			t.Fatalf("%d looks at the start", f.count())
		}
		w.changed(kernel.NFTables, "")
		synctest.Wait()
		if f.count() != 1 {
			t.Error("a look because of another feature's kind")
		}
		w.changed(kernel.Route, "")
		synctest.Wait()
		if f.count() != 2 {
			t.Error("no look after a change")
		}
		time.Sleep(10*lookEvery + time.Second)
		if n := f.count(); n != 12 {
			t.Errorf("%d looks in ten periods", n-2)
		}
	})
}

// However many changes of one kind come at once, the others are not forgotten.
func TestBurstOfOneKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		w := start(t, Config{Features: []datapath.Feature{f}})
		for i := range 200 {
			w.notice(kernel.NFTables, 0, fmt.Sprint("nft ", i))
		}
		w.notice(kernel.Route, 0, "ip (pid 7)")
		for i := range 200 {
			w.notice(kernel.NFTables, 0, fmt.Sprint("nft ", i))
		}
		if n := len(w.events.pending); n > 66 {
			t.Errorf("%d changes are to be reported", n)
		}
		time.Sleep(2 * settle)
		synctest.Wait()
		if f.count() != 2 {
			t.Errorf("%d looks, want one at the start and one for the route", f.count())
		}
	})
}

// A burst is counted by kind, logged once, and reported once, with who made it.
func TestBurstIsReportedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		var log strings.Builder
		var bursts []Burst
		w := start(t, Config{Features: []datapath.Feature{f}, OnRepair: func(b Burst) { bursts = append(bursts, b) }, Log: slog.New(slog.NewTextHandler(&log, nil))})
		f.damage(w, "ip (pid 7)", "a", "b")
		time.Sleep(100 * time.Millisecond)
		f.damage(w, "nft (pid 8)", "c")
		time.Sleep(burstTime)
		synctest.Wait()
		if len(bursts) != 1 || len(bursts[0].Repairs) != 3 || !slices.Equal(bursts[0].By, []string{"ip (pid 7)", "nft (pid 8)"}) {
			t.Errorf("bursts %+v", bursts)
		}
		if n := strings.Count(log.String(), "repaired kernel state"); n != 1 || !strings.Contains(log.String(), "a: missing") {
			t.Errorf("log: %s", log.String())
		}
		if s := w.Status(); s.Repairs[kernel.Route] != 3 || len(s.Faults) > 0 {
			t.Errorf("status %+v", s)
		}
		f.damage(w, "", "a")
		time.Sleep(2 * burstTime)
		if len(bursts) != 2 || len(bursts[1].By) > 0 {
			t.Errorf("bursts %+v", bursts)
		}
	})
}

// What cannot be repaired is in the status as long as it cannot, and is tried again.
func TestFaultIsInTheStatusUntilItIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{err: errors.New("summary 10.1.0.0/24: in the way\ndelete it")}
		changes := 0
		w := start(t, Config{Features: []datapath.Feature{f}, OnStatus: func() { changes++ }})
		if s := w.Status(); !slices.Equal(s.Faults, []string{"fake: summary 10.1.0.0/24: in the way; delete it"}) || changes != 1 {
			t.Errorf("status %+v after %d changes", s, changes)
		}
		time.Sleep(time.Minute)
		if n := f.count(); n < 8 || n > 12 {
			t.Errorf("%d tries in a minute", n)
		}
		f.fail(nil)
		time.Sleep(lookEvery + time.Second)
		if s := w.Status(); len(s.Faults) > 0 || changes != 2 {
			t.Errorf("status %+v after %d changes", s, changes)
		}
	})
}

// Somebody who breaks an object as soon as it is whole gets it repaired ever more rarely, is
// named, and is forgotten when it ends. Others' objects do not count.
func TestFight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{takes: time.Millisecond}
		bursts := 0
		w := start(t, Config{Features: []datapath.Feature{f}, OnRepair: func(Burst) { bursts++ }})
		for i := range 100 {
			f.damage(w, "", string(rune('A'+i)))
			time.Sleep(restFactor * f.takes)
		}
		if s := w.Status(); len(s.Faults) > 0 {
			t.Errorf("objects that are broken once each are fought for: %v", s.Faults)
		}
		before, reported := f.count(), bursts
		for began := time.Now(); time.Since(began) < 2*time.Minute; {
			f.damage(w, "thief (pid 9)", "r")
			time.Sleep(time.Millisecond)
		}
		if n := f.count() - before; n > 60 {
			t.Errorf("%d looks in two minutes of fight", n)
		}
		if bursts > reported+3 {
			t.Errorf("%d bursts are reported of the fight", bursts-reported)
		}
		s := w.Status()
		if len(s.Faults) != 1 || !strings.Contains(s.Faults[0], "thief (pid 9) keeps changing r (found: missing)") {
			t.Errorf("faults %q", s.Faults)
		}
		time.Sleep(fightMemory + 2*lookEvery)
		if s := w.Status(); len(s.Faults) > 0 {
			t.Errorf("the fight is over: %q", s.Faults)
		}
	})
}

// However many changes there are, looks take at most two percent of the time.
func TestLooksAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{takes: 10 * time.Millisecond}
		w := start(t, Config{Features: []datapath.Feature{f}})
		before := f.count()
		for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(time.Millisecond) {
			w.changed(kernel.Route, "")
		}
		if used := time.Duration(f.count()-before) * f.takes; used > time.Minute/restFactor+burstLooks+f.takes {
			t.Errorf("looks took %v of a minute", used)
		}
	})
}
