package service

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/datapath/proxy"
)

var _ datapath.Feature = (*Routes)(nil)

// Routes keeps the kernel's part: the routes to Services' addresses, the link that they are
// on, and the guard that refuses what nobody has translated. A node without such addresses
// has neither link nor guard. Its methods may be called from several goroutines.
//
// Reset and Set withdraw routes themselves, and add those that need nothing else. All that may
// take long is left to Complete: nftables, where the kernel makes one transaction after the
// other, whoever wants it, and looks at the kernel. So a withdrawal waits for none of it.
type Routes struct {
	// looking is held by who looks at the kernel, or changes the link. It is taken before work,
	// and work before mu.
	looking sync.Mutex
	// work is held by who changes nftables, and by none who only looks: an announcement waits for
	// the translation of its connections, and a look may take long.
	work  sync.Mutex
	guard *guard

	behind chan struct{}

	// mu guards all below. It is held while routes are added and deleted, and never while
	// nftables is asked.
	mu      sync.Mutex
	fib     *fib
	known   bool // Reset was called
	desired map[netip.Prefix]Entry
	interim Interim
	mtu     int
	due     bool // link or guard have to become others
	stale   bool // after an error: the kernel has to be looked at
	// guarded: link and guard are there, so that routes may be added.
	guarded bool
	// standing are the connections that the kernel translates, but for those that are just
	// being ended or led elsewhere.
	standing Interim
	// ending are those that are just being ended or led elsewhere. The kernel may have them.
	ending Interim
	noNAT  bool
	// touched are the prefixes with routes that were changed since a look began; nil if none
	// is under way.
	touched map[netip.Prefix]struct{}
}

// Open takes the calling thread's network namespace for the node's. It changes nothing.
func Open() (*Routes, error) {
	f, err := openFIB()
	if err != nil {
		return nil, err
	}
	g, err := openGuard()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Routes{fib: f, guard: g, desired: map[netip.Prefix]Entry{}, standing: Interim{}, ending: Interim{}, behind: cell.Signal()}, nil
}

// Close gives the sockets up. Routes and guard stay.
func (r *Routes) Close() {
	r.fib.Close()
	r.guard.Close()
}

// Kept is what an earlier run of the agent has left in the kernel. It changes nothing, and
// has to be called before Reset.
func (r *Routes) Kept() (map[netip.Prefix]Entry, Interim, error) {
	r.looking.Lock()
	defer r.looking.Unlock()
	r.work.Lock()
	defer r.work.Unlock()
	is, err := r.fib.peek()
	if err != nil {
		return nil, nil, err
	}
	interim, err := readInterim(r.guard.tables)
	if err != nil {
		return nil, nil, err
	}
	for from, t := range interim {
		if t.Until.IsZero() { // of an earlier version
			t.Until = time.Now().Add(InterimTime)
			interim[from] = t
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.known {
		r.fib.learn(is)
	}
	return maps.Clone(is.entries), interim, nil
}

// Reset makes these all the entries that there shall be, and all the connections that flock
// translates. It withdraws all others.
func (r *Routes) Reset(all map[netip.Prefix]Entry, interim Interim) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known, r.due = true, true
	r.desired, r.interim = map[netip.Prefix]Entry{}, interim
	for p, e := range all {
		if e != (Entry{}) {
			r.desired[p] = e
		}
	}
	_ = r.change(r.allowed(Plan(whole(r.desired, r.fib.Actual()), r.fib.Actual()))) // Complete meets again what the kernel refuses
	cell.Wake(r.behind)
}

// Set changes the entries of some prefixes; the zero Entry removes one. Interim are all the
// connections that flock translates. It waits only for routes. Complete does the rest, and what
// the kernel refuses.
func (r *Routes) Set(changes map[netip.Prefix]Entry, interim Interim) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := len(r.desired)
	r.interim = interim
	for p, e := range changes {
		if e == (Entry{}) {
			delete(r.desired, p)
		} else {
			r.desired[p] = e
		}
	}
	// The first needs link and guard, and with the last they go.
	r.due = r.due || (before > 0) != (len(r.desired) > 0)
	if !r.known {
		return
	}
	_ = r.change(r.allowed(Plan(changes, r.fib.Actual())))
	cell.Wake(r.behind)
}

// SetMTU sets the MTU of the link, in bytes: what a process of the node takes for the MTU of
// the path to a Service. It should be that of the node's uplinks. 0 is the kernel's default.
func (r *Routes) SetMTU(mtu int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mtu != mtu {
		r.mtu, r.due = mtu, true
		cell.Wake(r.behind)
	}
}

// Behind has a value when there may be something for Complete to do.
func (r *Routes) Behind() <-chan struct{} { return r.behind }

// Complete does what Reset, Set and SetMTU have left to do. If the kernel refuses, it has what
// it could get, and Complete has to be called again.
func (r *Routes) Complete() error {
	r.mu.Lock()
	known, look := r.known, r.due || r.stale
	r.mu.Unlock()
	switch {
	case !known:
		return nil
	case look:
		r.looking.Lock()
		defer r.looking.Unlock()
		_, err := r.converge()
		return err
	}
	return r.translate()
}

// change changes routes. The caller holds mu.
func (r *Routes) change(plan []Change) error {
	if r.touched != nil {
		for _, c := range plan {
			r.touched[c.Prefix] = struct{}{}
		}
	}
	err := r.fib.Apply(plan)
	r.stale = r.stale || err != nil
	return err
}

// allowed are the changes of a plan that nothing has to precede. Routes need link and guard,
// and before an address is announced connections to it are translated, and no others than
// shall be: they might lead to a pod that is gone. Withdrawals need nothing. The caller holds mu.
func (r *Routes) allowed(plan []Change) []Change {
	lacking := map[netip.Addr]bool{}
	now := time.Now()
	want := r.translations()
	over := func(t Translation) bool { return !t.Until.IsZero() && !now.Before(t.Until.Add(interimMargin)) }
	for from, t := range want {
		if is, ok := r.standing[from]; !ok || is.To != t.To || over(is) {
			lacking[from.Addr] = true
		}
	}
	for _, has := range []Interim{r.standing, r.ending} {
		for from, t := range has {
			if want[from].To != t.To && !over(t) {
				lacking[from.Addr] = true
			}
		}
	}
	waits := func(p netip.Prefix) bool {
		if p.IsSingleIP() {
			return lacking[p.Addr()]
		}
		for a := range lacking {
			if p.Contains(a) {
				return true
			}
		}
		return false
	}
	return slices.DeleteFunc(plan, func(c Change) bool {
		return c.Op > DelLocal && !r.guarded || c.Op == Announce && waits(c.Prefix)
	})
}

// translations are the connections that flock translates. Without an address there is no
// guard, and none. The caller holds mu.
func (r *Routes) translations() Interim {
	if len(r.desired) == 0 {
		return nil
	}
	return r.interim
}

// translate has the kernel translate what it shall, announces what waited for it, and then ends
// the other translations: an address is withdrawn before they are not wanted any more. Last it
// announces what waited for their end.
func (r *Routes) translate() error {
	r.work.Lock()
	defer r.work.Unlock()
	refused := r.modify(additions)
	waits, late := r.route()
	ended := r.modify(func(want, have Interim) interimChange {
		return removals(want, have, refused != nil) // a connection that cannot be moved is led nowhere
	})
	var last error
	if waits {
		_, last = r.route()
	}
	return errors.Join(refused, late, ended, last)
}

// route makes the changes of routes that nothing has to precede any more, and says whether others
// wait.
func (r *Routes) route() (waits bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	plan := Plan(r.desired, r.fib.Actual())
	all := len(plan)
	plan = r.allowed(plan)
	return len(plan) < all, r.change(plan)
}

// modify changes what the kernel translates by what is wanted at that moment. From then on no
// address is announced by what is about to change. Elements may have come or gone since the last
// look. Then the change is made of what there is. The caller holds work.
func (r *Routes) modify(change func(want, have Interim) interimChange) error {
	for again := false; ; again = true {
		r.mu.Lock()
		c := change(r.translations(), r.guard.interim)
		for from, t := range c.del {
			if c.add[from].To != t.To {
				delete(r.standing, from)
				r.ending[from] = t
			}
		}
		r.mu.Unlock()
		if c.isEmpty() {
			return nil
		}
		err := r.guard.change(c)
		if err == nil {
			r.stand()
			return nil
		}
		if !again && isOutdated(err) {
			var have Interim
			if have, err = readInterim(r.guard.tables); err == nil {
				r.guard.interim = have
				r.stand()
				continue
			}
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.stale = true
		for from, t := range c.add { // what the kernel took
			if r.guard.interim[from] == t {
				r.standing[from] = t
			}
		}
		return err
	}
}

// stand takes in what the kernel translates. The caller holds work.
func (r *Routes) stand() {
	standing := maps.Clone(r.guard.interim)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.standing, r.ending, r.noNAT = standing, Interim{}, r.guard.seen.noNAT
}

// Translated are the connections that the kernel translates, but for those that are just being
// ended or led elsewhere.
func (r *Routes) Translated() Interim {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.standing)
}

// ForgetFlows makes the kernel decide again for flows of UDP from outside to where these
// connections go, but for those that lead to a pod.
func (r *Routes) ForgetFlows(targets []proxy.Target, isPod func(netip.Addr) bool) error {
	return r.fib.forgetFlows(targets, isPod)
}

// Translates says whether the kernel can translate, as far as it was tried.
func (r *Routes) Translates() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.noNAT
}

// Actual is what the kernel had at the last look, with the changes since.
func (r *Routes) Actual() map[netip.Prefix]Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.fib.Actual())
}

// Refused counts the packets that the guard has refused since its table was made.
func (r *Routes) Refused() (uint64, error) { return r.guard.Refused() }

// Name implements [datapath.Feature].
func (r *Routes) Name() string { return "services" }

// Kinds implements [datapath.Feature].
func (r *Routes) Kinds() []kernel.Kind {
	return []kernel.Kind{kernel.Link, kernel.Route, kernel.Sysctl, kernel.NFTables}
}

// Sync implements [datapath.Feature].
func (r *Routes) Sync(context.Context) ([]datapath.Repair, error) {
	r.looking.Lock()
	defer r.looking.Unlock()
	r.mu.Lock()
	known, due, stale := r.known, r.due, r.stale
	r.mu.Unlock()
	switch {
	case !known:
		return nil, nil
	case due: // what it changes was decided, not found
		if _, err := r.converge(); err != nil {
			return nil, err
		}
	case !stale:
		_ = r.translate() // what it refuses, converge meets again
	}
	return r.converge()
}

// converge reads what the kernel has, and applies the difference to what is desired. It returns
// how the kernel differed from what it had last. The caller holds looking.
func (r *Routes) converge() (repairs []datapath.Repair, err error) {
	r.mu.Lock()
	due, wanted, mtu := r.due, len(r.desired) > 0, r.mtu
	r.due, r.stale = false, false
	r.touched = map[netip.Prefix]struct{}{}
	if !wanted { // before anything is taken away
		r.guarded, r.standing = false, Interim{}
	}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.touched = nil
		if err != nil {
			r.due, r.stale = r.due || due, true
		}
	}()
	if !wanted {
		return r.takeAway()
	}
	// The guard is first: without it nothing is refused, and senders wait.
	var is look
	if repairs, err = r.syncGuard(); err == nil {
		var more []datapath.Repair
		is, more, err = r.fib.Load(mtu)
		repairs = append(repairs, more...)
	}
	if err != nil {
		return repairs, errors.Join(err, r.withdraw())
	}
	r.mu.Lock()
	for _, c := range r.found(is) {
		repairs = append(repairs, c.repair())
	}
	r.guarded = true
	refused := r.change(r.allowed(Plan(whole(r.desired, r.fib.Actual()), r.fib.Actual())))
	r.mu.Unlock()
	if err := errors.Join(refused, r.translate()); err != nil {
		return repairs, err
	}
	return repairs, nil
}

// found takes in what was seen of link and routes, and returns how the routes differ from those
// that the kernel had, as changes that would undo it. What has changed since the look began is
// known better. The caller holds mu.
func (r *Routes) found(is look) []Change {
	had := r.fib.Actual()
	for p := range r.touched {
		if e, ok := had[p]; ok {
			is.entries[p] = e
		} else {
			delete(is.entries, p)
		}
	}
	r.fib.learn(is)
	return Plan(whole(had, is.entries), is.entries)
}

// withdraw withdraws what is there and shall not be, where the node cannot have the rest.
// Withdrawals need neither guard nor link. The caller holds looking.
func (r *Routes) withdraw() error {
	is, err := r.fib.peek()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.guarded = false
	if err == nil {
		r.found(is)
	}
	return errors.Join(err, r.change(r.allowed(Plan(whole(r.desired, r.fib.Actual()), r.fib.Actual()))))
}

// takeAway deletes all that there is. The caller holds looking.
func (r *Routes) takeAway() ([]datapath.Repair, error) {
	repairs, err := r.fib.takeAway()
	if err != nil {
		return repairs, errors.Join(err, r.withdraw())
	}
	r.work.Lock()
	defer r.work.Unlock()
	r.mu.Lock()
	r.fib.learn(look{entries: map[netip.Prefix]Entry{}})
	r.standing = Interim{}
	r.mu.Unlock()
	deleted, err := r.guard.takeAway()
	if deleted {
		repairs = append(repairs, guardRepair(datapath.Stray))
	}
	return repairs, err
}

// lookAttempts at the guard's table are made, of which the last one stops others that change it.
const lookAttempts = 3

// syncGuard makes the kernel's table the guard's. One that is made anew has all translations
// at once. Translations do not wait for the look; one that they have overtaken is made again.
// The caller holds looking.
func (r *Routes) syncGuard() (repairs []datapath.Repair, err error) {
	r.work.Lock()
	defer r.work.Unlock()
	var is tableLook
	for attempt := 1; ; attempt++ {
		before := r.guard.seen
		if attempt < lookAttempts {
			r.work.Unlock()
		}
		is, err = r.guard.look(before)
		if attempt < lookAttempts {
			r.work.Lock()
		}
		if err != nil {
			return nil, err
		}
		if r.guard.seen.commits == before.commits {
			break
		}
	}
	if is.found == "" {
		had := r.guard.interim
		r.guard.saw(is)
		repairs = interimRepairs(had, r.guard.interim)
	} else {
		r.mu.Lock()
		r.guarded, r.standing = false, Interim{}
		interim := r.translations()
		r.mu.Unlock()
		if err := r.guard.replace(interim); err != nil {
			return nil, err
		}
		repairs = append(repairs, guardRepair(is.found))
	}
	r.stand()
	return repairs, nil
}

func guardRepair(found string) datapath.Repair {
	return datapath.Repair{Kind: kernel.NFTables, Object: "table " + table.String(), Found: found}
}

// whole is what is wanted, and nothing for all else that there is.
func whole(want, have map[netip.Prefix]Entry) map[netip.Prefix]Entry {
	all := make(map[netip.Prefix]Entry, len(want))
	for p := range have {
		all[p] = Entry{}
	}
	maps.Copy(all, want)
	return all
}
