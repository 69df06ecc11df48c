package service

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/datapath/proxy"
	"flock.fritzlab.net/flock/pkg/pod"
)

// Config is what a Controller needs.
type Config struct {
	Routes *Routes
	Proxy  *proxy.Reader
	// OnTransitions is called in order, once the kernel has the changes, with all transitions
	// of one turn together. It must not wait. Optional.
	OnTransitions func([]Transition)
	// OnStatus is called when what Status returns has changed. It must not wait. Optional.
	OnStatus func()
	Log      *slog.Logger
}

// Controller owns the state. It acts on each event as it comes, on all that are there at
// once. It withdraws and announces by itself what may be at once; for all that may take longer
// there are goroutines beside it.
type Controller struct {
	cfg   Config
	inbox *cell.Inbox[message]
	flows *cell.Inbox[diversion]
	// questions are what is to be asked of kube-proxy's rules.
	questions cell.Cell[[]proxy.Question]
	matters   cell.Cell[bool]

	// What follows is Run's alone.

	state   *State
	interim Interim      // what the kernel was asked to translate last
	led     Interim      // what it has translated last
	pending []Transition // decided, but not in the kernel yet
	fault   error        // the kernel's, of the last time
}

// What the kernel refused, or would not say, is tried again after so long at first, and at
// last.
const (
	retryMin = 100 * time.Millisecond
	retryMax = 30 * time.Second
)

// NewController makes a Controller. It takes events before it runs.
func NewController(c Config) *Controller {
	if c.OnTransitions == nil {
		c.OnTransitions = func([]Transition) {}
	}
	if c.OnStatus == nil {
		c.OnStatus = func() {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Controller{cfg: c, inbox: cell.NewInbox[message](), flows: cell.NewInbox[diversion]()}
}

// Send puts an event into the inbox. It never waits.
func (c *Controller) Send(e Event) { c.inbox.Put(message{event: e, arrived: time.Now()}) }

// APIServerMatters says whether there is a pod that kube-proxy may not know, and that flock would
// translate to. Then it matters whether the API server answers ([Node]).
func (c *Controller) APIServerMatters() cell.Reader[bool] { return &c.matters }

// Status is the Services' addresses on the node.
type Status struct {
	// Mode is kube-proxy's.
	Mode proxy.Mode
	// Fault is what the kernel refused last; empty if it has all that it should.
	Fault string
	// Paths are all addresses. Announced is what the kernel has.
	Paths []Path
}

// Status returns the state after all events that came before. It waits for Run to be running.
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

// Run owns everything until the context ends, and then leaves the kernel as it is. It fails if
// the kernel cannot be read.
func (c *Controller) Run(ctx context.Context) error {
	kept, interim, err := c.cfg.Routes.Kept()
	if err != nil {
		return err
	}
	c.state, c.interim, c.led = NewState(kept, interim), interim, interim
	c.cfg.Routes.Reset(kept, interim)
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	failed := make(chan error, 1)
	changed := cell.Signal()
	running.Go(func() { failed <- c.cfg.Proxy.Watch(ctx, func() { cell.Wake(changed) }) })
	running.Go(func() { c.look(ctx, changed) })
	running.Go(func() { c.complete(ctx) })
	running.Go(func() { c.forgetFlows(ctx) })

	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var alarm <-chan time.Time
		if next := c.state.Next(); !next.IsZero() {
			timer.Reset(time.Until(next))
			alarm = timer.C
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			if ctx.Err() == nil {
				return err
			}
			return nil
		case <-c.inbox.Filled():
		case <-alarm:
		}
		c.turn()
	}
}

// turn takes in what has come, and then acts on all of it.
func (c *Controller) turn() {
	now := time.Now()
	c.state.Tick(now)
	var events []Event
	var asks []chan Status
	arrived, asking := now, false
	for _, m := range c.inbox.Take() {
		if m.ask != nil {
			asks = append(asks, m.ask)
			continue
		}
		if m.completed != nil {
			c.took(*m.completed)
			continue
		}
		if m.arrived.Before(arrived) {
			arrived = m.arrived
		}
		_, isServices := m.event.(Services)
		asking = asking || isServices
		events = append(events, m.event)
	}
	c.state.SetTranslates(c.cfg.Routes.Translates())
	c.state.Apply(now, arrived, events...)
	c.reportTransitions() // before others may undo them
	want, transitions := c.state.Wanted()
	if interim := c.state.Interim(); len(want) > 0 || !interim.Equal(c.interim) {
		c.interim = interim
		c.cfg.Routes.Set(want, interim)
	}
	c.decided(transitions)
	c.reportTransitions()
	if c.state.Moving() {
		c.state.Confirm(now, c.cfg.Routes.Actual())
	}
	if asking {
		c.questions.Set(c.state.Questions())
	}
	c.matters.Set(c.state.APIServerMatters())
	if c.state.Changed() {
		c.cfg.OnStatus()
	}
	for _, ask := range asks {
		ask <- c.status()
	}
}

// complete has the kernel do what takes longer, and reports to the controller what came of it.
// It is a goroutine of its own: the kernel makes one transaction of nftables at a time, and one
// of kube-proxy's may take long.
func (c *Controller) complete(ctx context.Context) {
	pause := backoff.Backoff{First: retryMin, Last: retryMax}
	retry := time.NewTimer(retryMax)
	defer retry.Stop()
	retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.cfg.Routes.Behind():
		case <-retry.C:
		}
		retry.Stop()
		done := completion{err: c.cfg.Routes.Complete()}
		if done.err == nil {
			pause.Reset()
		} else {
			done.retry = pause.Next()
			retry.Reset(done.retry)
		}
		c.inbox.Put(message{completed: &done})
	}
}

// completion is what came of the rest of a change of the kernel.
type completion struct {
	err   error         // the kernel's; nil: it has all that it should
	retry time.Duration // after which it is tried again
}

// took takes in what came of changes of the kernel.
func (c *Controller) took(done completion) {
	switch {
	case done.err != nil:
		c.cfg.Log.Error("cannot set routes to Services' addresses, will retry", "error", done.err, "after", done.retry)
	case c.fault != nil:
		c.cfg.Log.Info("routes to Services' addresses are complete again")
	}
	if c.fault != nil || done.err != nil {
		c.cfg.OnStatus()
	}
	c.fault = done.err
	c.diverted()
}

// diverted passes on which flows of UDP the kernel translates from now on.
func (c *Controller) diverted() {
	var targets []proxy.Target
	translated := c.cfg.Routes.Translated()
	for target, t := range translated {
		if target.Protocol == pod.Protocols["udp"] && c.led[target].To != t.To {
			targets = append(targets, target)
		}
	}
	c.led = translated
	if len(targets) > 0 {
		c.flows.Put(diversion{targets, c.state.podAddrs()})
	}
}

// diversion are connections that lead to other pods from now on, and the addresses of the pods
// that there are.
type diversion struct {
	targets []proxy.Target
	pods    map[netip.Addr]bool
}

// forgetFlows makes the kernel forget where flows of UDP went that nobody answers any more, and
// tries again what failed. It is a goroutine of its own: the kernel goes through all connections
// for it.
func (c *Controller) forgetFlows(ctx context.Context) {
	forgetFlows(ctx, c.flows, c.cfg.Routes.ForgetFlows, c.cfg.Log)
}

func forgetFlows(ctx context.Context, flows *cell.Inbox[diversion], forget func([]proxy.Target, func(netip.Addr) bool) error, log *slog.Logger) {
	pause := backoff.Backoff{First: retryMin, Last: retryMax}
	retry := time.NewTimer(retryMax)
	defer retry.Stop()
	retry.Stop()
	due := map[proxy.Target]bool{}
	var pods map[netip.Addr]bool // as they were seen last
	for {
		select {
		case <-ctx.Done():
			return
		case <-flows.Filled():
		case <-retry.C:
		}
		retry.Stop()
		for _, d := range flows.Take() {
			for _, target := range d.targets {
				due[target] = true
			}
			pods = d.pods
		}
		if len(due) == 0 {
			continue
		}
		if err := forget(slices.Collect(maps.Keys(due)), func(a netip.Addr) bool { return pods[a] }); err != nil {
			after := pause.Next()
			retry.Reset(after)
			log.Warn("cannot delete the conntrack entries of UDP flows to Services, will retry: until then clients that keep their source port may get no answer", "error", err, "after", after)
			continue
		}
		pause.Reset()
		clear(due)
	}
}

// decided takes in transitions. What is withdrawn before the kernel had it was never announced.
func (c *Controller) decided(transitions []Transition) {
	for _, t := range transitions {
		before := len(c.pending)
		if !t.Announced {
			c.pending = slices.DeleteFunc(c.pending, func(p Transition) bool { return p.Service == t.Service && p.Addr == t.Addr })
		}
		if len(c.pending) == before {
			c.pending = append(c.pending, t)
		}
	}
}

// reportTransitions calls OnTransitions with the transitions that the kernel has made.
func (c *Controller) reportTransitions() {
	if len(c.pending) == 0 {
		return
	}
	now := time.Now()
	actual := c.cfg.Routes.Actual()
	var made []Transition
	c.pending = slices.DeleteFunc(c.pending, func(t Transition) bool {
		if t.Announced && !actual[t.Prefix].Announced {
			return false
		}
		t.Applied = now
		made = append(made, t)
		return true
	})
	if len(made) > 0 {
		c.cfg.OnTransitions(made)
	}
}

func (c *Controller) status() Status {
	s := Status{Mode: c.state.mode, Paths: c.state.Paths()}
	if c.fault != nil {
		s.Fault = c.fault.Error()
	}
	actual := c.cfg.Routes.Actual()
	for i, p := range s.Paths {
		switch {
		case !p.Announced || actual[p.Prefix].Announced:
			continue
		case c.fault != nil:
			s.Paths[i].Detail = "the kernel refused: " + s.Fault
		default:
			s.Paths[i].Detail = "the kernel does not have it yet"
		}
		s.Paths[i].Announced = false
	}
	return s
}

// look reads kube-proxy's rules whenever nftables has changed or something else is asked. It
// is a goroutine of its own: a look at a thousand Services takes milliseconds, which a
// withdrawal must not wait for.
func (c *Controller) look(ctx context.Context, changed chan struct{}) {
	const (
		lookEvery   = 30 * time.Second // notifications can be lost
		legacyEvery = time.Second      // and of iptables-legacy's first rule there is none
	)
	c.questions.Notify(changed)
	timer := time.NewTimer(0)
	defer timer.Stop()
	retry := backoff.Backoff{First: retryMin, Last: lookEvery}
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-timer.C:
		}
		questions := c.questions.Get()
		if len(questions) == 0 {
			timer.Reset(lookEvery)
			continue
		}
		asked := make(map[proxy.Key]bool, len(questions))
		for _, q := range questions {
			asked[q.Key] = q.Here
		}
		look, err := c.cfg.Proxy.Read(questions)
		if err != nil {
			after := retry.Next()
			c.cfg.Log.Warn("cannot read kube-proxy's rules, will retry", "error", err, "after", after)
			timer.Reset(after)
			continue
		}
		retry.Reset()
		timer.Reset(lookEvery)
		if look.Mode == proxy.Legacy || look.Mode == proxy.None {
			timer.Reset(legacyEvery)
		}
		c.Send(Looked{Asked: asked, Look: look})
	}
}

// message is an event, what came of changes of the kernel, or somebody who asks for the status.
type message struct {
	event     Event
	arrived   time.Time
	completed *completion
	ask       chan Status
}
