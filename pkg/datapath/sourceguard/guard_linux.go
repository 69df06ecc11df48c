package sourceguard

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
)

// A Guard keeps the kernel's bindings. Its methods may be called from several
// goroutines.
type Guard struct {
	conn *nft.Conn
	// counts has a socket of its own: reading them shall keep no pod waiting.
	counts *nft.Conn
	// commit and elements are the kernel. Tests cut in here.
	commit   func(*nft.Batch) error
	elements func(nft.Set) ([]nft.Element, error)

	mu sync.Mutex // guards all below, and is held while the kernel is at work
	// desired is what the kernel shall have, by link name; nil before the first Resync.
	desired map[string][]element
	// stale says that the kernel may have something else.
	stale bool
	// seen is the ruleset's generation in which the kernel was found to have what is desired.
	seen uint32
	// repaired is what Set and Remove found on their way, for the next Sync to return.
	repaired []datapath.Repair
}

// Open adds flock's tables to the calling thread's network namespace if they are
// not there. If they are, nothing of them changes, and they go on protecting; if
// not, nothing is guarded until [Guard.Resync].
func Open() (*Guard, error) {
	conn, err := nft.Dial()
	if err != nil {
		return nil, err
	}
	counts, err := nft.Dial()
	if err != nil {
		conn.Close()
		return nil, err
	}
	g := &Guard{conn: conn, counts: counts, commit: conn.Commit, elements: conn.Elements}
	if err := g.addBase(); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// Close gives the sockets up. What is in the kernel goes on protecting.
func (g *Guard) Close() {
	g.conn.Close()
	g.counts.Close()
}

func (g *Guard) addBase() error {
	var b nft.Batch
	addBase(&b)
	return g.commit(&b)
}

// ErrNotSynced says that a single binding was to change before the kernel was made
// to hold the known ones: the others' packets would be dropped, or a stale binding
// obeyed.
var ErrNotSynced = errors.New("source bindings: not yet synchronised with the kernel; this is the agent's fault, please report it")

// Set makes the binding the link's only one, in one transaction that touches no
// other's. It may be called before the link is there, and best is: from its first
// packet on the pod sends with its own addresses and no others.
//
// Where the kernel refuses because somebody changed flock's tables, as by flushing the
// ruleset, they are repaired on the way.
func (g *Guard) Set(b Binding) error {
	if err := b.Validate(); err != nil {
		return err
	}
	return g.change(b.HostIf, b.elements())
}

// Remove drops whatever comes from the link from now on, and forgets its counts. After an
// error, the next Sync does it.
// It is no error if nothing was bound.
func (g *Guard) Remove(hostIf string) error {
	if err := validHostIf(hostIf); err != nil {
		return err
	}
	return g.change(hostIf, nil)
}

func (g *Guard) change(hostIf string, want []element) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.desired == nil {
		return ErrNotSynced
	}
	var refused error
	if !g.stale {
		var b nft.Batch
		addChanges(&b, diff(g.desired[hostIf], want))
		if refused = g.commit(&b); refused == nil {
			bind(g.desired, hostIf, want)
			return nil
		}
	}
	all := maps.Clone(g.desired)
	bind(all, hostIf, want)
	repairs, err := g.converge(all)
	g.repaired = append(g.repaired, repairs...)
	if err != nil {
		if len(want) == 0 { // the next Sync removes it
			bind(g.desired, hostIf, nil)
		}
		return cmp.Or(refused, err)
	}
	return nil
}

// Resync makes the kernel match the bindings exactly, in transactions of bounded
// size, each of them harmless if it is the last. It must be called once before
// Set and Sync, with all pods that there are, and may be called at any time after.
func (g *Guard) Resync(all []Binding) error {
	want := make(map[string][]element, len(all))
	var errs []error
	for _, b := range all {
		if err := b.Validate(); err != nil {
			errs = append(errs, err)
			continue
		}
		if _, twice := want[b.HostIf]; twice {
			errs = append(errs, fmt.Errorf("source binding of %q: named twice", b.HostIf))
		}
		want[b.HostIf] = b.elements()
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	_, err := g.converge(want)
	return err
}

// batchElements come or go in one transaction, at least. During a
// transaction no other program can change nftables. The kernel accepts 200 KiB of
// elements at a time.
const batchElements = 512

// converge makes the kernel have want, and returns what it changed for that.
func (g *Guard) converge(want map[string][]element) (repairs []datapath.Repair, err error) {
	g.stale, g.seen = true, 0 // until it has come to its end
	generation, err := g.conn.Generation()
	if err != nil {
		return nil, err
	}
	is, err := g.inspect()
	if err != nil {
		return nil, err
	}
	if is.incomplete {
		if err := g.addBase(); err != nil {
			return nil, err
		}
	}
	have, err := g.actual()
	if err != nil {
		return nil, err
	}
	links := maps.Clone(have)
	maps.Copy(links, want)
	var pending []change
	var come, gone [len(sets)]int
	for _, hostIf := range slices.Sorted(maps.Keys(links)) {
		changes := diff(have[hostIf], want[hostIf])
		for _, c := range changes {
			if c.add {
				come[c.set]++
			} else {
				gone[c.set]++
			}
		}
		if pending = append(pending, changes...); len(pending) >= batchElements {
			if err := g.apply(pending); err != nil {
				return nil, err
			}
			pending = pending[:0]
		}
	}
	if err := g.apply(pending); err != nil {
		return nil, err
	}
	repairs = is.repairs
	for s := range sets {
		if come[s]+gone[s] > 0 {
			repairs = append(repairs, differs("set", sets[s], fmt.Sprintf("%d elements missing, %d stray", come[s], gone[s])))
		}
	}
	// The rules last: where there were none, running pods shall not be cut off
	// until their bindings are in.
	if is.otherRules {
		var b nft.Batch
		setRules(&b, is.remake)
		for _, c := range is.stray { // no rule of flock's jumps there any more, nor of each other
			b.SetRules(c)
		}
		for _, c := range is.stray {
			b.DelChain(c)
		}
		if err := g.commit(&b); err != nil {
			return nil, err
		}
	}
	g.desired, g.stale = want, false
	if len(repairs) == 0 {
		g.seen = generation
	}
	return repairs, nil
}

func (g *Guard) apply(cs []change) error {
	var b nft.Batch
	addChanges(&b, cs)
	return g.commit(&b)
}

// actual reads all bindings back from the kernel.
func (g *Guard) actual() (map[string][]element, error) {
	have := map[string][]element{}
	for s := range sets {
		members, err := g.elements(sets[s])
		if err != nil {
			return nil, err
		}
		for _, m := range members {
			e := element{set(s), m.Key}
			have[e.hostIf()] = append(have[e.hostIf()], e)
		}
	}
	for _, es := range have {
		slices.SortFunc(es, element.compare)
	}
	return have, nil
}

func addChanges(b *nft.Batch, cs []change) {
	var gone, come [len(sets)][]string
	for _, c := range cs {
		if c.add {
			come[c.set] = append(come[c.set], c.key)
		} else {
			gone[c.set] = append(gone[c.set], c.key)
		}
	}
	for s := range sets {
		b.DelElements(sets[s], gone[s]...)
		b.AddElements(sets[s], come[s]...)
	}
}

func bind(bound map[string][]element, hostIf string, es []element) {
	if len(es) == 0 {
		delete(bound, hostIf)
		return
	}
	bound[hostIf] = es
}

// A Drop is what was dropped of one link's packets since it was first bound.
type Drop struct {
	HostIf  string
	Packets uint64
	Bytes   uint64 // of IP or ARP packets, without the Ethernet header
}

// Counters are the drops of every link that is bound, by name, and of all others
// with names that begin with "flock" together. They survive the agent. Reading them
// does not hold up Set. An error that is ENOENT says that somebody removed flock's
// tables: nothing is guarded, and a Resync is due.
func (g *Guard) Counters() (bound []Drop, unbound nft.Count, err error) {
	bound, unbound, err = g.counters()
	if errors.Is(err, unix.ENOENT) {
		err = fmt.Errorf("source guard: flock's nftables tables are missing and pods are not guarded until the agent has restored them: %w", err)
	}
	return bound, unbound, err
}

func (g *Guard) counters() (bound []Drop, unbound nft.Count, err error) {
	by := map[string]*Drop{}
	for _, s := range []set{podDrops, arpPodDrops} {
		members, err := g.counts.Elements(sets[s])
		if err != nil {
			return nil, nft.Count{}, err
		}
		for _, m := range members {
			name := element{s, m.Key}.hostIf()
			if by[name] == nil {
				by[name] = &Drop{HostIf: name}
			}
			by[name].Packets += m.Packets
			by[name].Bytes += m.Bytes
		}
	}
	for _, name := range []nft.Counter{ipUnbound, arpUnbound} {
		c, err := g.counts.Counter(name)
		if err != nil {
			return nil, nft.Count{}, err
		}
		unbound.Packets += c.Packets
		unbound.Bytes += c.Bytes
	}
	for _, d := range by {
		bound = append(bound, *d)
	}
	slices.SortFunc(bound, func(a, b Drop) int { return strings.Compare(a.HostIf, b.HostIf) })
	return bound, unbound, nil
}
