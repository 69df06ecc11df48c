package anycast

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Kernel is where decisions take effect: the FIB, on Linux.
type Kernel interface {
	// Load reads what the kernel has; Actual is what it is believed to have.
	Load() error
	Actual() map[netip.Addr]Entry
	Apply([]Change) error
	// Links are all links, LinkUp one, as they are now.
	Links() (Links, error)
	LinkUp(link int) (bool, error)
	// LinkDown says that the kernel has dropped what led to a link.
	LinkDown(link int)
	// Watch tells of links until the context ends: of one, or, when some changes
	// were missed, of all.
	Watch(ctx context.Context, tell func(Event)) error
	// Resilient tells whether groups let a draining pod keep its flows.
	Resilient() bool
}

// Config is what a Controller needs.
type Config struct {
	Kernel Kernel
	// Attached are the pods that the agent's records hold when it starts. What
	// an earlier run announced for others is withdrawn at once.
	Attached []Attached
	// OnTransitions is called, in order, once the kernel has what it tells of: with
	// all that came of one turn together. It must not wait. Optional.
	OnTransitions func([]Transition)
	Log           *slog.Logger
}

// Controller owns the state and the kernel's part of it. It acts on each event as
// it comes, on all that are there at once, and never because time has passed,
// apart from delays that were asked for and from trying again what failed.
type Controller struct {
	cfg   Config
	inbox inbox

	// What follows is Run's alone.

	state *State
	told  map[pathKey]bool       // by OnTransitions: announced
	due   map[pathKey]Transition // decided, but not seen in the kernel yet
	fault error                  // the kernel's, of the last time
	pause time.Duration          // before it is tried again
	retry time.Time              // zero: there is nothing to try again
}

// pathKey is a Path as far as it cannot change.
type pathKey struct {
	uid  UID
	link int
	addr netip.Addr
}

func (p Path) key() pathKey { return pathKey{p.Pod.UID, p.Link, p.Addr} }

// What the kernel refused is tried again after so long, twice as long each time.
const (
	retryMin = 100 * time.Millisecond
	retryMax = 30 * time.Second
)

// NewController makes a Controller. Events may be told before it runs.
func NewController(cfg Config) *Controller {
	if cfg.OnTransitions == nil {
		cfg.OnTransitions = func([]Transition) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Controller{
		cfg:   cfg,
		inbox: inbox{filled: make(chan struct{}, 1)},
		told:  map[pathKey]bool{}, due: map[pathKey]Transition{},
	}
}

// Tell takes an event in. It never waits.
func (c *Controller) Tell(e Event) { c.inbox.put(letter{event: e, arrived: time.Now()}) }

// Settle waits until all that was told before it is in the kernel, as far as the
// kernel took it, and for Run to be running.
func (c *Controller) Settle(ctx context.Context) error {
	_, err := c.Status(ctx)
	return err
}

// Status is what there is to see, at one moment after all that was told before. It
// waits for Run to be running.
func (c *Controller) Status(ctx context.Context) (Status, error) {
	answer := make(chan Status, 1)
	c.inbox.put(letter{ask: answer})
	select {
	case s := <-answer:
		return s, nil
	case <-ctx.Done():
		return Status{}, ctx.Err()
	}
}

// Status is a node's anycast addresses.
type Status struct {
	Source Source
	// Resilient groups are what the kernel has; else flows are hashed anew over
	// an address' pods whenever those change.
	Resilient bool
	// Fault is what the kernel refused last; empty if it has all that it should.
	Fault string
	// Paths are all pods at all addresses. Announced is what the kernel has.
	Paths []Path
}

// Run owns everything until the context ends, and then leaves it as it is. It
// fails if the kernel cannot be read.
func (c *Controller) Run(ctx context.Context) error {
	k := c.cfg.Kernel
	ctx, cancel := context.WithCancel(ctx)
	watch := make(chan error, 1)
	go func() { watch <- k.Watch(ctx, c.Tell) }()
	watching := true
	defer func() {
		cancel()
		if watching {
			<-watch
		}
	}()
	if err := k.Load(); err != nil {
		return err
	}
	links, err := k.Links()
	if err != nil {
		return err
	}
	now := time.Now()
	c.state = NewState(now, c.cfg.Attached, k.Actual())
	if !k.Resilient() {
		c.state.Drain = 0
	}
	for _, p := range c.state.Paths() {
		if p.Announced {
			c.told[p.key()] = true
		}
	}
	c.state.Apply(now, links, now)
	c.converge()

	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var alarm <-chan time.Time
		if next := earliest(c.state.Next(), c.retry); !next.IsZero() {
			timer.Reset(time.Until(next))
			alarm = timer.C
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-watch:
			watching = false
			if ctx.Err() == nil {
				return err
			}
			return nil
		case <-c.inbox.filled:
		case <-alarm:
		}
		c.turn(c.inbox.take())
	}
}

// turn takes in what has come, and then acts on all of it.
func (c *Controller) turn(letters []letter) {
	now := time.Now()
	c.state.Tick(now)
	reload := false
	var asks []chan Status
	for _, l := range letters {
		switch e := l.event.(type) {
		case nil:
			asks = append(asks, l.ask)
			continue
		case Link:
			if e.Up || !c.state.Knows(e.Index) {
				break
			}
			if up, err := c.cfg.Kernel.LinkUp(e.Index); up || err != nil {
				// It was down when it was made, or for a moment; what hung
				// on it then may be gone.
				reload = true
				continue
			}
			c.cfg.Kernel.LinkDown(e.Index)
		case Links:
			reload = true
		}
		c.state.Apply(now, l.event, l.arrived)
	}
	if reload || !c.retry.IsZero() && !now.Before(c.retry) {
		c.reload()
	} else {
		c.converge()
	}
	for _, ask := range asks {
		ask <- c.status()
	}
}

// converge brings the kernel to what has changed. If that fails, what the kernel
// has is read, and all of it put right.
func (c *Controller) converge() {
	want, transitions := c.state.Wanted()
	for _, t := range transitions {
		c.due[t.key()] = t
	}
	k := c.cfg.Kernel
	plan := Plan(want, k.Actual())
	if len(plan) == 0 {
		c.tell()
		return
	}
	if err := k.Apply(plan); err != nil {
		c.cfg.Log.Warn("anycast routes: the kernel refused a change; reading what it has", "error", err)
		c.reload()
		return
	}
	c.tell()
}

// reload looks at what the kernel has, links and routes, and puts it right.
func (c *Controller) reload() {
	err := c.restore()
	switch {
	case err == nil:
		if c.fault != nil {
			c.cfg.Log.Info("anycast routes: the kernel has all of them again")
		}
		c.fault, c.pause, c.retry = nil, 0, time.Time{}
	default:
		c.pause = min(max(2*c.pause, retryMin), retryMax)
		c.retry = time.Now().Add(c.pause)
		c.cfg.Log.Error("anycast routes are not what they should be", "error", err, "retry", c.pause)
		c.fault = err
	}
	c.tell()
}

func (c *Controller) restore() error {
	k := c.cfg.Kernel
	links, err := k.Links()
	if err != nil {
		return err
	}
	if err := k.Load(); err != nil {
		return err
	}
	now := time.Now()
	c.state.Apply(now, links, now)
	_, transitions := c.state.Wanted()
	for _, t := range transitions {
		c.due[t.key()] = t
	}
	want := c.state.Desired()
	for addr := range k.Actual() {
		if _, ok := want[addr]; !ok {
			want[addr] = Entry{}
		}
	}
	if err := k.Apply(Plan(want, k.Actual())); err != nil {
		return errors.Join(err, k.Load())
	}
	return nil
}

// tell tells of the transitions that the kernel has made.
func (c *Controller) tell() {
	now := time.Now()
	var made []Transition
	for key, t := range c.due {
		if c.fault != nil && c.announced(t.Path) != t.Announced {
			continue
		}
		delete(c.due, key)
		if c.told[key] == t.Announced {
			continue // it has changed back before the kernel knew
		}
		if t.Announced {
			c.told[key] = true
		} else {
			delete(c.told, key)
		}
		t.Applied = now
		made = append(made, t)
	}
	slices.SortFunc(made, func(a, b Transition) int {
		return cmp.Or(a.Cause.Compare(b.Cause), a.Addr.Compare(b.Addr), cmp.Compare(a.Link, b.Link))
	})
	if len(made) > 0 {
		c.cfg.OnTransitions(made)
	}
}

// announced tells whether the kernel has the path in an announced route.
func (c *Controller) announced(p Path) bool {
	e := c.cfg.Kernel.Actual()[p.Addr]
	return e.Announced && slices.Contains(e.Members, Member{Link: p.Link})
}

func (c *Controller) status() Status {
	s := Status{Source: c.state.Source(), Resilient: c.cfg.Kernel.Resilient(), Paths: c.state.Paths()}
	if c.fault != nil {
		s.Fault = c.fault.Error()
	}
	for i, p := range s.Paths {
		if is := c.announced(p); is != p.Announced {
			s.Paths[i].Announced = is
			s.Paths[i].Detail = "the kernel refused: " + s.Fault
		}
	}
	return s
}

// inbox keeps letters, without bound, until they are taken. Its makers never wait:
// among them is the way that a pod's end is learned.
type inbox struct {
	mu      sync.Mutex // guards letters
	letters []letter
	filled  chan struct{}
}

// letter is an event, or somebody who asks for the status.
type letter struct {
	event   Event
	arrived time.Time
	ask     chan Status
}

func (i *inbox) put(l letter) {
	i.mu.Lock()
	i.letters = append(i.letters, l)
	i.mu.Unlock()
	select {
	case i.filled <- struct{}{}:
	default:
	}
}

func (i *inbox) take() []letter {
	i.mu.Lock()
	defer i.mu.Unlock()
	letters := i.letters
	i.letters = nil
	return letters
}
