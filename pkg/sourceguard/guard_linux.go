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

	"flock.fritzlab.net/flock/pkg/nft"
)

// A Guard keeps the kernel's bindings. Its methods may be called from several
// goroutines.
type Guard struct {
	// counts has a socket of its own: reading them shall keep no pod waiting.
	counts *nft.Conn
	// commit and elements are the kernel. Tests cut in here.
	commit   func(*nft.Batch) error
	elements func(nft.Set) ([]nft.Element, error)
	close    func()

	mu sync.Mutex // guards all below, and is held while the kernel is at work
	// bound is what the kernel has, by link name; nil before the first Resync.
	bound map[string][]element
	// doubt says that the kernel may have something else.
	doubt bool
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
	g := &Guard{counts: counts, commit: conn.Commit, elements: conn.Elements, close: conn.Close}
	if err := g.addBase(); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// Close gives the sockets up. What is in the kernel goes on protecting.
func (g *Guard) Close() {
	g.close()
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
// What others did to flock's tables, such as flushing the ruleset, is mended on the
// way, as far as the kernel refuses to go on without.
func (g *Guard) Set(b Binding) error {
	if err := b.Validate(); err != nil {
		return err
	}
	return g.change(b.HostIf, b.elements())
}

// Remove drops whatever comes from the link from now on, and forgets its counts.
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
	if g.bound == nil {
		return ErrNotSynced
	}
	var refused error
	if !g.doubt {
		var b nft.Batch
		addChanges(&b, diff(g.bound[hostIf], want))
		if refused = g.commit(&b); refused == nil {
			bind(g.bound, hostIf, want)
			return nil
		}
	}
	all := maps.Clone(g.bound)
	bind(all, hostIf, want)
	if err := g.converge(all); err != nil {
		return cmp.Or(refused, err)
	}
	return nil
}

// Resync makes the kernel match the bindings exactly, in transactions of bounded
// size, each of them harmless if it is the last. It must be called once before
// Set, with all pods that there are, and may be called at any time after: it
// reads everything back, so it mends whatever happened to flock's tables.
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
	return g.converge(want)
}

// batchElements come or go in one transaction, at least. The kernel lets nobody
// else change nftables while it is at one, and takes 200 KiB of them at a time.
const batchElements = 512

func (g *Guard) converge(want map[string][]element) error {
	g.doubt = true // until it has come to its end
	if err := g.addBase(); err != nil {
		return err
	}
	have, err := g.actual()
	if err != nil {
		return err
	}
	links := maps.Clone(have)
	maps.Copy(links, want)
	var pending []change
	for _, hostIf := range slices.Sorted(maps.Keys(links)) {
		pending = append(pending, diff(have[hostIf], want[hostIf])...)
		if len(pending) >= batchElements {
			if err := g.apply(pending); err != nil {
				return err
			}
			pending = pending[:0]
		}
	}
	if err := g.apply(pending); err != nil {
		return err
	}
	// The rules last: where there were none, running pods shall not be cut off
	// until their bindings are in.
	var b nft.Batch
	setRules(&b)
	if err := g.commit(&b); err != nil {
		return err
	}
	g.bound, g.doubt = want, false
	return nil
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
// whose names begin with "flock" together. They survive the agent. Reading them
// does not hold up Set. An error that is ENOENT says that somebody removed flock's
// tables: nothing is guarded, and a Resync is due.
func (g *Guard) Counters() (bound []Drop, unbound nft.Count, err error) {
	bound, unbound, err = g.counters()
	if errors.Is(err, unix.ENOENT) {
		err = fmt.Errorf("source guard: pods are not guarded until the next resync, did someone flush nftables? %w", err)
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
