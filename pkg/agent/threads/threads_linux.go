package threads

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/metric"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/internal/timeslice"
)

const (
	// burst is more than a withdrawal of a thousand addresses takes.
	burst = 50 * time.Millisecond
	// pause is how long what took longer than burst runs like other programs.
	pause = time.Second
	// every is how often it is seen to that nobody has changed the threads.
	every = 10 * time.Second
)

// Threads are those of this process.
type Threads struct {
	priority int
	log      *slog.Logger

	mu      sync.Mutex // guards all below
	paused  bool
	pauses  int
	granted bool
	answer  string // of the kernel to the wish for a priority, as it was logged last
	short   string // why it gives no short slices
}

// ParsePriority reads a real-time priority; 0: none.
func ParsePriority(s string) (int, error) {
	n, err := timeslice.ParsePriority(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a real-time priority: %w", s, err)
	}
	return n, nil
}

// New gives all threads of this process short time slices. In Run they get a real-time priority from
// 1 to 99, or none with 0. What the kernel refuses is logged: the agent works without it.
func New(priority int, log *slog.Logger) *Threads {
	t := &Threads{priority: priority, log: log}
	t.shorten()
	return t
}

// Run keeps what the threads have until ctx ends.
func (t *Threads) Run(ctx context.Context) {
	long := make(chan os.Signal, 1)
	signal.Notify(long, unix.SIGXCPU) // before there is a priority: else the signal is ignored
	defer signal.Stop(long)
	look := time.NewTicker(every)
	defer look.Stop()
	over := time.NewTimer(0)
	defer over.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-long:
			t.mu.Lock()
			t.paused = true
			t.pauses++
			t.mu.Unlock()
			over.Reset(pause)
		case <-over.C:
			t.mu.Lock()
			t.paused = false
			t.mu.Unlock()
		case <-look.C:
		}
		t.shorten()
		t.set()
	}
}

// shorten gives all threads short time slices.
func (t *Threads) shorten() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if short := text(all(timeslice.Shorten)); short != t.short {
		if t.short = short; short != "" {
			t.log.Debug("cannot shorten the time slices of the agent's threads; withdrawals may wait longer on a busy node", "error", short)
		}
	}
}

// set gives all threads the priority that they are to have now, or takes it back. It can run at any
// time and again.
func (t *Threads) set() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.priority == 0 {
		return
	}
	// This thread has the priority before and after the others, or it would wait for them.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	self := timeslice.Self()
	lower := func() error {
		err := all(func(tid int) error {
			if tid == self {
				return nil
			}
			return timeslice.Lower(tid)
		})
		return errors.Join(err, timeslice.Lower(self))
	}
	if t.paused {
		if err := lower(); err != nil {
			t.log.Error("cannot take back the real-time priority of the agent's threads", "error", err)
		}
		t.granted = false
	}
	// The limit first: without it nothing ends what does not wait.
	err := timeslice.LimitBursts(burst)
	if t.paused {
		return
	}
	raise := func(tid int) error { return timeslice.Raise(tid, t.priority) }
	if err == nil {
		err = raise(self)
	}
	if err == nil {
		err = all(raise)
	}
	t.granted = err == nil
	if !t.granted {
		_ = lower() // a thread that has it would wait for one that has not
	}
	answer := cmp.Or(text(err), "granted")
	if answer == t.answer {
		return
	}
	t.answer = answer
	if t.granted {
		t.log.Info("the agent's threads have real-time priority", "priority", t.priority)
	} else {
		t.log.Warn("--realtime-priority: the agent's threads cannot have it, so withdrawals may wait longer on a busy node; will try again", "priority", t.priority, "error", err, "after", every)
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// all does something to each thread of this process. The error is that of one of them.
func all(do func(tid int) error) error { return timeslice.EachThread("self", sys.ReadDir, do) }

var (
	priorityMetric = metric.New(metric.Gauge, "flock_realtime_priority",
		"Real-time priority of the agent's threads (SCHED_RR); 0: none.",
		"0 where --realtime-priority is set: the kernel refuses it, and the agent's log says why.")
	pausesMetric = metric.New(metric.Counter, "flock_realtime_pauses_total",
		"Times that the agent's threads lost their real-time priority for a second, because one ran for 50 ms without waiting.",
		"Rising all the time: the agent has so much to do that a withdrawal may wait for a processor.")
)

// Describe implements prometheus.Collector.
func (t *Threads) Describe(ch chan<- *prometheus.Desc) {
	ch <- priorityMetric.Desc
	ch <- pausesMetric.Desc
}

// Collect implements prometheus.Collector.
func (t *Threads) Collect(ch chan<- prometheus.Metric) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var has int
	if t.granted {
		has = t.priority
	}
	ch <- priorityMetric.Value(float64(has))
	ch <- pausesMetric.Value(float64(t.pauses))
}
