package service

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/datapath/proxy"
)

var _ datapath.Feature = (*Routes)(nil)

// Routes keeps the kernel's part: the routes to Services' addresses, the link that they are
// on, and the guard that refuses what nobody has translated. A node without such addresses
// has neither link nor guard. Its methods may be called from several goroutines.
type Routes struct {
	fib *fib

	mu      sync.Mutex // guards what follows, and is held while the kernel is asked
	known   bool       // Reset was called
	desired map[netip.Prefix]Entry
	interim Interim
	mtu     int
	stale   bool // after an error, what the kernel has is not known
}

// Open takes the calling thread's network namespace for the node's. It changes nothing.
func Open() (*Routes, error) {
	f, err := openFIB()
	if err != nil {
		return nil, err
	}
	return &Routes{fib: f, desired: map[netip.Prefix]Entry{}, stale: true}, nil
}

// Close gives the sockets up. Routes and guard stay.
func (r *Routes) Close() { r.fib.Close() }

// Kept is what an earlier run of the agent has left in the kernel. It changes nothing, and
// has to be called before Reset.
func (r *Routes) Kept() (map[netip.Prefix]Entry, Interim, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	entries, err := r.fib.peek()
	if err != nil {
		return nil, nil, err
	}
	interim, err := r.fib.readInterim()
	for from, t := range interim {
		if t.Until.IsZero() { // of an earlier version
			t.Until = time.Now().Add(InterimTime)
			interim[from] = t
		}
	}
	return entries, interim, err
}

// Reset makes these all the entries that there are, and all the connections that flock
// translates.
func (r *Routes) Reset(all map[netip.Prefix]Entry, interim Interim) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known = true
	r.desired, r.interim = maps.Clone(all), interim
	maps.DeleteFunc(r.desired, func(_ netip.Prefix, e Entry) bool { return e == Entry{} })
	_, err := r.converge()
	return err
}

// Set changes the entries of some prefixes; the zero Entry removes one. Interim are all the
// connections that flock translates. If the kernel refuses, it has what it could get; Sync
// tries again. Withdrawals wait for nothing else.
func (r *Routes) Set(changes map[netip.Prefix]Entry, interim Interim) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	before, changed := len(r.desired), !r.interim.Equal(interim)
	r.interim = interim
	for p, e := range changes {
		changed = changed || r.desired[p] != e
		if e == (Entry{}) {
			delete(r.desired, p)
		} else {
			r.desired[p] = e
		}
	}
	if !r.known || !changed && !r.stale {
		return nil
	}
	plan := Plan(changes, r.fib.Actual())
	// The first needs link and guard, and the last takes them away.
	if !r.stale && before > 0 && len(r.desired) > 0 {
		if err := r.apply(plan); err == nil {
			return nil
		}
	} else {
		_ = r.fib.Apply(withdrawals(plan)) // what it refuses, converge meets again
	}
	_, err := r.converge()
	return err
}

// SetMTU sets the MTU of the link, in bytes: what a process of the node takes for the MTU of
// the path to a Service. It should be that of the node's uplinks. 0 is the kernel's default.
func (r *Routes) SetMTU(mtu int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed := r.mtu != mtu
	r.mtu = mtu
	if !changed || !r.known {
		return nil
	}
	_, err := r.converge()
	return err
}

// apply makes changes of routes. Connections to an address are translated before it is
// announced, and until it is withdrawn. What the kernel refuses keeps nothing else from being
// done.
func (r *Routes) apply(plan []Change) error {
	interim := r.translated()
	first := withdrawals(plan)
	errs := []error{r.fib.Apply(first)}
	rest := plan[len(first):]
	if err := r.fib.addInterim(interim); err != nil {
		errs = append(errs, err)
		rest = slices.DeleteFunc(slices.Clone(rest), func(c Change) bool { return c.Op == Announce && r.fib.lacks(interim, c.Prefix) })
	}
	errs = append(errs, r.fib.Apply(rest), r.fib.pruneInterim(interim))
	return errors.Join(errs...)
}

// translated are the connections that flock translates. Without an address there is no guard,
// and none.
func (r *Routes) translated() Interim {
	if len(r.desired) == 0 {
		return nil
	}
	return r.interim
}

// withdrawals are the changes of a plan, its first, that take routes away.
func withdrawals(plan []Change) []Change {
	if n := slices.IndexFunc(plan, func(c Change) bool { return c.Op > DelLocal }); n >= 0 {
		return plan[:n]
	}
	return plan
}

// ForgetFlows makes the kernel decide again for flows of UDP from outside to where these
// connections go, but for those that lead to a pod.
func (r *Routes) ForgetFlows(ctx context.Context, targets []proxy.Target, isPod func(netip.Addr) bool) error {
	return r.fib.forgetFlows(ctx, targets, isPod)
}

// Translates says whether the kernel can translate, as far as it was tried.
func (r *Routes) Translates() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.fib.noNAT
}

// Actual is what the kernel had at the last look, with the changes since.
func (r *Routes) Actual() map[netip.Prefix]Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.fib.Actual())
}

// Refused counts the packets that the guard has refused since its table was made.
func (r *Routes) Refused() (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fib.Refused()
}

// Name implements [datapath.Feature].
func (r *Routes) Name() string { return "services" }

// Kinds implements [datapath.Feature].
func (r *Routes) Kinds() []kernel.Kind {
	return []kernel.Kind{kernel.Link, kernel.Route, kernel.Sysctl, kernel.NFTables}
}

// Sync implements [datapath.Feature].
func (r *Routes) Sync(context.Context) ([]datapath.Repair, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.known {
		return nil, nil
	}
	return r.converge()
}

// converge reads what the kernel has, and applies the difference to what is desired.
func (r *Routes) converge() ([]datapath.Repair, error) {
	r.stale = true
	interim := r.translated()
	repairs, err := r.fib.Load(len(r.desired) > 0, r.mtu, interim)
	want := maps.Clone(r.desired)
	for p := range r.fib.Actual() {
		if _, ok := want[p]; !ok {
			want[p] = Entry{}
		}
	}
	plan := Plan(want, r.fib.Actual())
	if err != nil { // withdrawals need neither guard nor link
		return repairs, errors.Join(err, r.fib.Apply(withdrawals(plan)))
	}
	differs := interimRepairs(interim, r.fib.interim)
	if err := r.apply(plan); err != nil {
		_, again := r.fib.Load(len(r.desired) > 0, r.mtu, interim) // what the kernel took
		return repairs, errors.Join(err, again)
	}
	r.stale = false
	for _, c := range plan {
		repairs = append(repairs, c.repair())
	}
	return append(repairs, differs...), nil
}
