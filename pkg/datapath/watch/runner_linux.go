package watch

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/pkg/datapath"
)

const (
	// lookEvery is how often a feature looks without a reason.
	lookEvery = 30 * time.Second
	// lookAgain is when it makes sure of what it has repaired.
	lookAgain = 200 * time.Millisecond
	// A feature's looks take no more than one part in restFactor of the time, past the first
	// burstLooks of a burst.
	restFactor = 50
	burstLooks = 100 * time.Millisecond
	// An object that is repaired more often than fightAfter times, each time within fightMemory
	// of the last, is fought for. The first repairs after that wait for fightFirst, and twice as
	// long each time, up to fightLast.
	fightAfter  = 8
	fightMemory = time.Minute
	fightFirst  = 100 * time.Millisecond
	fightLast   = 5 * time.Second
	// After a failure Sync is tried again.
	retryFirst = 100 * time.Millisecond
)

// runner calls one feature's Sync.
type runner struct {
	feature datapath.Feature
	wake    chan struct{}
	done    func(result)
	// lookEvery, fightAfter and cpuTime are those of this package, but for tests.
	lookEvery  time.Duration
	fightAfter int
	cpuTime    func() time.Duration
	// minRest is the least time between two looks.
	minRest time.Duration

	mu sync.Mutex // guards by
	by []string   // who made changes since the last look

	// What follows is run's alone.

	strikes map[string]*strike // by object
	// credit is for how long it may look without a rest, as of creditAt.
	credit   time.Duration
	creditAt time.Time
}

// strike counts the repairs of one object.
type strike struct {
	count int
	last  time.Time
	found string
	by    []string // of the last repair of which somebody is known
}

// notify asks for a look. by is who made the change; empty if that is not known.
func (r *runner) notify(by string) {
	const most = 3
	r.mu.Lock()
	if by != "" && len(r.by) < most && !slices.Contains(r.by, by) {
		r.by = append(r.by, by)
	}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run looks at once, then whenever it is asked to, and now and then.
func (r *runner) run(ctx context.Context) {
	retry := backoff.Backoff{First: retryFirst, Last: lookEvery}
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-next.C:
		}
		r.mu.Lock()
		by := r.by
		r.by = nil
		r.mu.Unlock()
		began, used := time.Now(), r.cpuTime()
		repairs, err := r.feature.Sync(ctx)
		if ctx.Err() != nil {
			return
		}
		now := time.Now()
		// What the look cost is no more than either: on a busy machine it waits for the
		// processor, and in a busy agent others use that.
		cost := min(now.Sub(began), r.cpuTime()-used)
		delay := r.strike(now, repairs, by)
		out := result{feature: r.feature.Name(), repairs: repairs, fresh: r.unfought(repairs), by: by, faults: r.faults(err)}
		if n, ok := r.feature.(noter); ok {
			out.notes = n.Notes()
		}
		r.done(out)

		rest := max(r.spend(began, cost), delay, r.minRest)
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
		switch {
		case err != nil:
			next.Reset(retry.Next())
		case len(repairs) > 0:
			next.Reset(lookAgain)
		default:
			next.Reset(r.lookEvery)
		}
		if err == nil {
			retry.Reset()
		}
	}
}

// cpuTime is what this process has used of processors so far.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// spend accounts for a look that began at a time, and returns for how long the next one has to
// wait for it.
func (r *runner) spend(began time.Time, cost time.Duration) (rest time.Duration) {
	earned := burstLooks
	if !r.creditAt.IsZero() {
		earned = min(burstLooks, r.credit+began.Sub(r.creditAt)/restFactor)
	}
	r.credit, r.creditAt = earned-cost, began.Add(cost)
	return max(0, -r.credit*restFactor)
}

// strike counts repairs, and returns for how long the next ones have to wait.
func (r *runner) strike(now time.Time, repairs []datapath.Repair, by []string) (delay time.Duration) {
	maps.DeleteFunc(r.strikes, func(_ string, s *strike) bool { return now.Sub(s.last) > fightMemory })
	for _, repair := range repairs {
		s := r.strikes[repair.Object]
		if s == nil {
			s = &strike{}
			r.strikes[repair.Object] = s
		}
		s.count++
		s.last, s.found = now, repair.Found
		if len(by) > 0 {
			s.by = by
		}
		if n := s.count - r.fightAfter; n > 0 {
			delay = max(delay, min(fightFirst<<min(n-1, 16), fightLast))
		}
	}
	return delay
}

// unfought returns the repairs of objects that no other program keeps changing. Fights are faults,
// and are reported once.
func (r *runner) unfought(repairs []datapath.Repair) (rest []datapath.Repair) {
	for _, repair := range repairs {
		if s := r.strikes[repair.Object]; s == nil || s.count <= r.fightAfter {
			rest = append(rest, repair)
		}
	}
	return rest
}

// faults are an error and the fights, in words.
func (r *runner) faults(err error) (faults []string) {
	if err != nil {
		faults = append(faults, fmt.Sprintf("%s: %s", r.feature.Name(), strings.ReplaceAll(err.Error(), "\n", "; ")))
	}
	type fight struct {
		objects int
		first   string
	}
	fights := map[string]fight{} // by who and what it does
	for _, object := range slices.Sorted(maps.Keys(r.strikes)) {
		s := r.strikes[object]
		if s.count <= r.fightAfter {
			continue
		}
		who := "a program that the kernel does not name"
		if len(s.by) > 0 {
			who = strings.Join(s.by, ", ")
		}
		f := fights[who]
		if f.objects++; f.objects == 1 {
			f.first = fmt.Sprintf("%s (found: %s)", object, s.found)
		}
		fights[who] = f
	}
	for _, who := range slices.Sorted(maps.Keys(fights)) {
		f := fights[who]
		more := ""
		if f.objects > 1 {
			more = fmt.Sprintf(" and %d more objects", f.objects-1)
		}
		faults = append(faults, fmt.Sprintf("%s: %s keeps changing %s%s: flock repairs it at most every %v; stop that program", r.feature.Name(), who, f.first, more, fightLast))
	}
	return faults
}
