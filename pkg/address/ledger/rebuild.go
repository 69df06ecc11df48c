package ledger

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"flock.fritzlab.net/flock/pkg/address"
	"flock.fritzlab.net/flock/pkg/pod"
)

// Observed is a pod's link as the kernel has it.
type Observed struct {
	ContainerID string // empty: the link does not say
	HostIf      string
	Pod         string // namespace/name; the end of a very long one is missing
	MTU         int
	// Addrs are the pod's addresses.
	Addrs []netip.Addr
	// Routed are those with a host route that stays on the node, Announced those
	// with one that is announced. Addresses with neither are shared, or have lost
	// their route.
	Routed, Announced []netip.Addr
	// HostPorts are the node's ports that are forwarded to these addresses.
	HostPorts []pod.HostPort
}

// defaultIfName is what every runtime of Kubernetes calls a pod's interface. The
// kernel has the name only inside the pod.
const defaultIfName = "eth0"

// Rebuild returns the records of attachments that nothing but the kernel remembers.
// summaries are the node's CIDRs as the kernel has them.
//
// Where an address comes from follows from its route: one that stays on the node is
// covered by a summary, one that is announced is static and from a pool, and one
// without a route of its own is anycast if no summary covers it. What the kernel does
// not know is empty: the network, the pod's UID and the names of pools. Of several
// static addresses of a family the lowest becomes the primary one.
func Rebuild(links []Observed, summaries []netip.Prefix) []Record {
	var records []Record
	for _, l := range links {
		r := Record{
			ID:     ID{ContainerID: l.ContainerID, IfName: defaultIfName},
			State:  Committed,
			HostIf: l.HostIf,
			MTU:    l.MTU,

			HostPorts: l.HostPorts,
		}
		if l.ContainerID == "" {
			// Another program has overwritten the alias. The rest of the link follows from
			// the container ID, so it is held as it is.
			r.ContainerID, r.State = l.HostIf, Unknown
		}
		r.Pod.Namespace, r.Pod.Name, _ = strings.Cut(l.Pod, "/")
		var own []address.Granted
		for _, a := range l.Addrs {
			cidr := covering(summaries, a)
			switch {
			case slices.Contains(l.Announced, a):
				own = append(own, address.Granted{Addr: a})
			case cidr.IsValid() || slices.Contains(l.Routed, a):
				own = append(own, address.Granted{Addr: a, CIDR: cidr}) // without a summary it has to be announced
			default:
				r.Anycast = append(r.Anycast, address.Granted{Addr: a})
			}
		}
		// IPv6 first, of each family the node's own address, which can only be primary
		// if it was allocated.
		slices.SortFunc(own, func(a, b address.Granted) int {
			return cmp.Or(before(a.Addr.Is6(), b.Addr.Is6()), before(!a.FromPool(), !b.FromPool()), a.Addr.Compare(b.Addr))
		})
		slices.SortFunc(r.Anycast, func(a, b address.Granted) int { return a.Addr.Compare(b.Addr) })
		for i, a := range own {
			if i == 0 || own[i-1].Addr.Is6() != a.Addr.Is6() {
				r.Primary = append(r.Primary, a)
			} else {
				r.Secondary = append(r.Secondary, a)
			}
		}
		records = append(records, r)
	}
	return records
}

// before sorts true before false.
func before(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func covering(cidrs []netip.Prefix, a netip.Addr) netip.Prefix {
	for _, c := range cidrs {
		if c.Contains(a) {
			return c
		}
	}
	return netip.Prefix{}
}

// Rebuild records those of the links that have no record, and returns what it
// recorded. A record of a newer release gets from its link what could not be read. It
// is for the agent's start, before it serves.
func (l *Ledger) Rebuild(links []Observed, summaries []netip.Prefix) []Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	byHostIf, byContainer := map[string]Record{}, map[string]Record{}
	for _, r := range l.records {
		byHostIf[r.HostIf], byContainer[r.ContainerID] = r, r
	}
	names := map[string]string{} // the unreadable files' container IDs and interfaces
	for _, id := range l.unreadable {
		names[id.ContainerID] = id.IfName
	}
	var made []Record
	for _, r := range Rebuild(links, summaries) {
		r.IfName = cmp.Or(names[r.ContainerID], r.IfName)
		known, there := byHostIf[r.HostIf]
		if !there {
			known, there = byContainer[r.ContainerID]
		}
		switch {
		case !there:
			made = append(made, r)
			if r.State == Unknown {
				break // the kernel will still say so at the next start
			}
			if err := l.files.put(r); err != nil {
				l.log.Error("cannot write the rebuilt record of an attachment; continuing without", "attachment", r.ID, "pod", r.Pod, "error", err)
			}
		case known.State == Unknown && len(known.All()) == 0:
			known.HostIf, known.MTU, known.Set, known.HostPorts = r.HostIf, r.MTU, r.Set, r.HostPorts
			r = known // its file is the newer release's
		default:
			continue
		}
		l.hold(r)
		l.set(r)
	}
	l.unreadable = nil
	return made
}

// Identify enters the UID of a pod into the records that were rebuilt without, and
// returns those.
func (l *Ledger) Identify(p pod.Ref) []Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	var identified []Record
	for _, r := range l.records {
		if r.Pod != (pod.Ref{Namespace: p.Namespace, Name: p.Name}) || r.State != Committed {
			continue
		}
		r.Pod = p
		if err := l.files.put(r); err != nil {
			l.log.Error("cannot write the UID of a pod into its attachment record; continuing without", "attachment", r.ID, "pod", r.Pod, "error", err)
		}
		l.set(r)
		identified = append(identified, r)
	}
	return identified
}
