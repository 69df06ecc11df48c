package grant

import (
	"net/netip"
	"time"

	"flock.fritzlab.net/flock/pkg/annotation"
	"flock.fritzlab.net/flock/pkg/embed"
	"flock.fritzlab.net/flock/pkg/ipam"
)

// Taken is what a pod holds.
type Taken struct {
	// Own are the pod's addresses, at most one of each family, IPv6 first.
	Own []ipam.Lease
	// Further are its other static addresses.
	Further []ipam.Lease
	// Anycast addresses are shared, so the allocator does not hold them.
	Anycast []Address
}

// Leases are all that the allocator holds for the pod: what to store, to Reserve at
// the next start, and to Release when the pod's link is gone.
func (t Taken) Leases() []ipam.Lease {
	return append(append([]ipam.Lease(nil), t.Own...), t.Further...)
}

// Take holds the plan's addresses in a, all of them or none. w is what the pod is,
// for an address that is made of it; holder is [Input.Holder] as of now. The errors
// are those of the allocator, and a *Refusal for an address that another pod has
// taken since Decide looked.
func (p Plan) Take(a *ipam.Allocator, w embed.Workload, holder func(netip.Addr) (Holder, bool), now time.Time) (_ Taken, err error) {
	var t Taken
	defer func() {
		if err != nil {
			for _, l := range t.Leases() {
				a.Release(l.Addr, time.Time{}) // not used
			}
		}
	}()
	reserve := func(addr Address) (ipam.Lease, error) {
		if err := freeForOne(addr.Addr, holder); err != nil {
			return ipam.Lease{}, err
		}
		l := ipam.Lease{Addr: addr.Addr, CIDR: addr.CIDR}
		if err := a.Reserve(l); err != nil {
			return ipam.Lease{}, &Refusal{annotation.Addresses, addr.Addr.String(), "is held by another pod: choose another address, or wait until that pod has gone"}
		}
		return l, nil
	}
	for _, f := range []struct {
		family ipam.Family
		from   *Source
	}{{ipam.IPv6, p.IPv6}, {ipam.IPv4, p.IPv4}} {
		if f.from == nil {
			continue
		}
		var l ipam.Lease
		if f.from.Static != nil {
			l, err = reserve(*f.from.Static)
		} else {
			l, err = a.Allocate(f.from.request(f.family, w), now)
		}
		if err != nil {
			return Taken{}, err
		}
		t.Own = append(t.Own, l)
	}
	for _, addr := range p.Further {
		l, err := reserve(addr)
		if err != nil {
			return Taken{}, err
		}
		t.Further = append(t.Further, l)
	}
	for _, addr := range p.Anycast {
		if err := freeToShare(addr.Addr, holder); err != nil {
			return Taken{}, err
		}
	}
	t.Anycast = p.Anycast
	return t, nil
}

func (s Source) request(f ipam.Family, w embed.Workload) ipam.Request {
	r := ipam.Request{Family: f, Within: s.Within}
	if len(s.Algo) > 0 {
		r.Near = func(prefix netip.Prefix) netip.Addr { return embed.Address(prefix, s.Algo, w) }
	}
	return r
}
