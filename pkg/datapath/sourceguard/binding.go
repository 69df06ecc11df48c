package sourceguard

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"flock.fritzlab.net/flock/internal/netaddr"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
)

// A Binding is what may come from one pod's link (RFC 7039, section 3: the link is
// the binding anchor).
type Binding struct {
	// HostIf is the host end's name. It is the name that is bound, not an
	// interface index: it is known before the link is made, and is not given to
	// another container's link later.
	HostIf string
	// LinkLocal is the pod end's link-local address; the zero value if it has
	// none. It is good for neighbour discovery, multicast listener reports and
	// pings on the link, and for nothing else.
	LinkLocal netip.Addr
	// Sources are all other addresses that the pod holds, in any order: its own,
	// further static ones, anycast ones whether they are announced or not.
	Sources []netip.Addr
}

// Validate says what of the binding makes no sense, all of it at once.
func (b Binding) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("source binding of %q: "+format, append([]any{b.HostIf}, args...)...))
	}
	if err := validHostIf(b.HostIf); err != nil {
		errs = append(errs, err)
	}
	if ll := b.LinkLocal; ll.IsValid() && (!ll.Is6() || !ll.IsLinkLocalUnicast() || ll.Zone() != "") {
		bad("link-local address %v: want one of fe80::/10 without zone", ll)
	}
	for i, a := range b.Sources {
		switch {
		case netaddr.UnroutableReason(a) != "":
			bad("address %v: %s, which cannot be routed to a pod", a, netaddr.UnroutableReason(a))
		case slices.Contains(b.Sources[:i], a):
			bad("address %v: named twice", a)
		}
	}
	return errors.Join(errs...)
}

func validHostIf(name string) error {
	if !strings.HasPrefix(name, kernel.LinkPrefix) || len(name) >= ifNameSize {
		return fmt.Errorf("source binding of %q: want a name that begins with %q and has at most %d bytes", name, kernel.LinkPrefix, ifNameSize-1)
	}
	return nil
}

// ifNameSize is the kernel's IFNAMSIZ.
const ifNameSize = 16

// element is a member of one of the sets, as the kernel has it.
type element struct {
	set set
	key string
}

func (e element) compare(f element) int {
	return cmp.Or(cmp.Compare(e.set, f.set), cmp.Compare(e.key, f.key))
}

// hostIf is the element's link: every key begins with its name.
func (e element) hostIf() string {
	return strings.TrimRight(e.key[:min(ifNameSize, len(e.key))], "\x00")
}

// elements are what the binding is in the kernel, sorted. Packets are counted for
// every pod in both tables, whatever addresses it holds.
func (b Binding) elements() []element {
	name := make([]byte, ifNameSize)
	copy(name, b.HostIf)
	es := []element{{podDrops, string(name)}, {arpPodDrops, string(name)}}
	add := func(s set, a netip.Addr) {
		es = append(es, element{s, string(append(name[:ifNameSize:ifNameSize], a.AsSlice()...))})
	}
	if b.LinkLocal.IsValid() {
		add(podLinkLocals, b.LinkLocal)
	}
	for _, a := range b.Sources {
		if a.Is6() {
			add(podSources6, a)
		} else {
			add(podSources4, a)
			add(arpPodSources4, a)
		}
	}
	slices.SortFunc(es, element.compare)
	return es
}

// change is one element that comes or goes.
type change struct {
	element
	add bool
}

// diff is what leads from have to want; both are sorted.
func diff(have, want []element) (cs []change) {
	for len(have) > 0 || len(want) > 0 {
		order := -1
		switch {
		case len(have) == 0:
			order = 1
		case len(want) > 0:
			order = have[0].compare(want[0])
		}
		switch {
		case order < 0:
			cs = append(cs, change{have[0], false})
			have = have[1:]
		case order > 0:
			cs = append(cs, change{want[0], true})
			want = want[1:]
		default:
			have, want = have[1:], want[1:]
		}
	}
	return cs
}

// set is one of the sets that hold bindings.
type set int

const (
	podSources6 set = iota
	podSources4
	podLinkLocals
	podDrops
	arpPodSources4
	arpPodDrops
)

// flock's tables. A table of one family cannot see ARP and IP both.
var (
	ipTable  = nft.Table{Family: nft.Inet, Name: kernel.Table}
	arpTable = nft.Table{Family: nft.ARP, Name: kernel.Table}
)

// sets are what the elements are members of. A set of the same name with another
// key or other flags is another set: it needs another name, so that an agent can
// fill it while the old rules still use the old one.
var sets = [...]nft.Set{
	podSources6:    {Table: ipTable, Name: "pod-sources6", Key: []nft.Field{nft.IfName, nft.IPv6Addr}},
	podSources4:    {Table: ipTable, Name: "pod-sources4", Key: []nft.Field{nft.IfName, nft.IPv4Addr}},
	podLinkLocals:  {Table: ipTable, Name: "pod-link-locals", Key: []nft.Field{nft.IfName, nft.IPv6Addr}},
	podDrops:       {Table: ipTable, Name: "pod-drops", Key: []nft.Field{nft.IfName}, Counters: true},
	arpPodSources4: {Table: arpTable, Name: "pod-sources4", Key: []nft.Field{nft.IfName, nft.IPv4Addr}},
	arpPodDrops:    {Table: arpTable, Name: "pod-drops", Key: []nft.Field{nft.IfName}, Counters: true},
}
