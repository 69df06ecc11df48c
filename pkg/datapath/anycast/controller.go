package anycast

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/pod"
)

// Kernel is where decisions take effect: the FIB, on Linux.
type Kernel interface {
	// Load reads what the kernel has, and deletes what belongs to nothing; Actual is what it
	// had then, with the changes since.
	Load() ([]datapath.Repair, error)
	Actual() map[netip.Addr]Entry
	Apply([]Change) error
	// Links are all links, LinkUp one, as they are now.
	Links() (Links, error)
	LinkUp(link int) (bool, error)
	// LinkDown says that the kernel has dropped what led to a link.
	LinkDown(link int)
	// Watch reports changes of links until the context ends, and all links if
	// notifications were lost.
	Watch(ctx context.Context, report func(Event)) error
	// Resilient reports whether groups let a draining pod keep its flows.
	Resilient() bool
}

// Config is what a Controller needs.
type Config struct {
	Kernel Kernel
	// Attached are the pods that the agent's records hold when it starts. What
	// an earlier run announced for others is withdrawn at once.
	Attached []Attached
	// OnTransitions is called in order, once the kernel has the changes, with all
	// transitions of one turn together. It must not wait. Optional.
	OnTransitions func([]Transition)
	Log           *slog.Logger
}

// Controller owns the state and the kernel's part of it. It acts on each event as
// it comes, on all that are there at once, and never because time has passed,
// apart from delays that were asked for and from trying again what failed.
type Controller struct {
	cfg   Config
	inbox *cell.Inbox[message] // whoever reports the end of a pod must not wait

	// What follows is Run's alone.

	state    *State
	reported map[pathKey]bool       // by OnTransitions: announced
	pending  map[pathKey]Transition // decided, but not seen in the kernel yet
	fault    error                  // the kernel's, of the last time
	pause    time.Duration          // before it is tried again
	retry    time.Time              // zero if there is nothing to retry
}

// pathKey is a Path as far as it cannot change.
type pathKey struct {
	uid  pod.UID
	link int
	addr netip.Addr
}

func (p Path) key() pathKey { return pathKey{p.Pod.UID, p.Link, p.Addr} }

// What the kernel refused is tried again after so long, twice as long each time.
const (
	retryMin = 100 * time.Millisecond
	retryMax = 30 * time.Second
)

// NewController makes a Controller. It takes events before it runs.
func NewController(cfg Config) *Controller {
	if cfg.OnTransitions == nil {
		cfg.OnTransitions = func([]Transition) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Controller{
		cfg:      cfg,
		inbox:    cell.NewInbox[message](),
		reported: map[pathKey]bool{}, pending: map[pathKey]Transition{},
	}
}

// Send puts an event into the inbox. It never waits.
func (c *Controller) Send(e Event) { c.inbox.Put(message{event: e, arrived: time.Now()}) }

// Status returns the state after all events that came before. It waits for Run to be
// running.
func (c *Controller) Status(ctx context.Context) (Status, error) {
	answer := make(chan Status, 1)
	c.inbox.Put(message{ask: answer})
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
	// Resilient: the kernel has resilient groups. Else flows are hashed again over an
	// address' pods whenever those change.
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
	go func() { watch <- k.Watch(ctx, c.Send) }()
	watching := true
	defer func() {
		cancel()
		if watching {
			<-watch
		}
	}()
	if _, err := k.Load(); err != nil {
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
			c.reported[p.key()] = true
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
		case <-c.inbox.Filled():
		case <-alarm:
		}
		messages := c.inbox.Take()
		c.turn(messages)
		for _, m := range messages {
			if m.sync != nil {
				repairs := c.reload()
				m.sync <- synced{repairs, c.fault}
			}
		}
	}
}

// turn takes in what has come, and then acts on all of it.
func (c *Controller) turn(messages []message) {
	now := time.Now()
	c.state.Tick(now)
	reload := false
	var asks []chan Status
	for _, m := range messages {
		switch e := m.event.(type) {
		case nil:
			if m.ask != nil {
				asks = append(asks, m.ask)
			}
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
		c.state.Apply(now, m.event, m.arrived)
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
// has is read, and the whole difference applied.
func (c *Controller) converge() {
	want, transitions := c.state.Wanted()
	for _, t := range transitions {
		c.pending[t.key()] = t
	}
	k := c.cfg.Kernel
	plan := Plan(want, k.Actual())
	if len(plan) == 0 {
		c.reportTransitions()
		return
	}
	if err := k.Apply(plan); err != nil {
		c.cfg.Log.Warn("kernel refused a change of anycast routes, reading what it has", "error", err)
		c.reload()
		return
	}
	c.reportTransitions()
}

// reload reads what the kernel has, links and routes, applies the difference to what it
// shall have, and returns it.
func (c *Controller) reload() []datapath.Repair {
	repairs, err := c.restore()
	switch {
	case err == nil:
		if c.fault != nil {
			c.cfg.Log.Info("anycast routes are complete again")
		}
		c.fault, c.pause, c.retry = nil, 0, time.Time{}
	default:
		c.pause = min(max(2*c.pause, retryMin), retryMax)
		c.retry = time.Now().Add(c.pause)
		c.cfg.Log.Error("cannot set anycast routes, will retry", "error", err, "retry", c.pause)
		c.fault = err
	}
	c.reportTransitions()
	return repairs
}

func (c *Controller) restore() ([]datapath.Repair, error) {
	k := c.cfg.Kernel
	links, err := k.Links()
	if err != nil {
		return nil, err
	}
	repairs, err := k.Load()
	if err != nil {
		return repairs, err
	}
	now := time.Now()
	c.state.Apply(now, links, now)
	_, transitions := c.state.Wanted()
	for _, t := range transitions {
		c.pending[t.key()] = t
	}
	want := c.state.Desired()
	for addr := range k.Actual() {
		if _, ok := want[addr]; !ok {
			want[addr] = Entry{}
		}
	}
	plan := Plan(want, k.Actual())
	if err := k.Apply(plan); err != nil {
		_, again := k.Load()
		return repairs, errors.Join(err, again)
	}
	for _, change := range plan {
		repairs = append(repairs, change.repair())
	}
	return repairs, nil
}

// reportTransitions calls OnTransitions with the transitions that the kernel has made.
func (c *Controller) reportTransitions() {
	now := time.Now()
	var made []Transition
	for key, t := range c.pending {
		if c.fault != nil && c.announced(t.Path) != t.Announced {
			continue
		}
		delete(c.pending, key)
		if c.reported[key] == t.Announced {
			continue // it has changed back before the kernel knew
		}
		if t.Announced {
			c.reported[key] = true
		} else {
			delete(c.reported, key)
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

// announced reports whether the kernel has the path in an announced route.
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

// message is an event, or somebody who asks for the status or for a Sync.
type message struct {
	event   Event
	arrived time.Time
	ask     chan Status
	sync    chan synced
}
