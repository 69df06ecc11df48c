package grant

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"flock.fritzlab.net/flock/pkg/address"
	"flock.fritzlab.net/flock/pkg/address/annotation"
	"flock.fritzlab.net/flock/pkg/address/embed"
	"flock.fritzlab.net/flock/pkg/address/ipam"
)

// Take holds the plan's addresses in a, all of them or none. w is what the pod is,
// for an address that is made of it; holder is [Input.Holder] as of now. The errors
// are those of the allocator, and a *Refusal for an address that another pod has
// taken since Decide looked.
func (p Plan) Take(a *ipam.Allocator, w embed.Workload, holder func(netip.Addr) (Holder, bool), now time.Time) (_ address.Set, err error) {
	var t address.Set
	defer func() {
		if err != nil {
			for _, g := range t.Held() {
				a.Release(g.Addr, "", time.Time{}) // not used
			}
		}
	}()
	reserve := func(g address.Granted) error {
		if err := freeForOne(g.Addr, holder); err != nil {
			return err
		}
		err := a.ReserveFor(g, OwnerOf(w), now)
		if quarantined := (*ipam.QuarantineError)(nil); errors.As(err, &quarantined) {
			return &Refusal{annotation.Addresses, g.Addr.String(), fmt.Sprintf("is in quarantine until %s, because packets to the workload that had it may still come (spec.podCIDRs.quarantineSeconds): choose another address, or wait",
				quarantined.Free.UTC().Format(time.RFC3339))}
		}
		if err != nil {
			return &Refusal{annotation.Addresses, g.Addr.String(), "is held by another pod: choose another address, or wait until that pod has gone"}
		}
		return nil
	}
	for _, f := range []struct {
		family ipam.Family
		from   *Source
	}{{ipam.IPv6, p.IPv6}, {ipam.IPv4, p.IPv4}} {
		if f.from == nil {
			continue
		}
		var g address.Granted
		if f.from.Static != nil {
			g = *f.from.Static
			err = reserve(g)
		} else {
			g, err = a.Allocate(f.from.request(f.family, w), now)
			g.Named = f.from.Named
		}
		if err != nil {
			return address.Set{}, err
		}
		t.Primary = append(t.Primary, g)
	}
	for _, g := range p.Secondary {
		if err := reserve(g); err != nil {
			return address.Set{}, err
		}
		t.Secondary = append(t.Secondary, g)
	}
	for _, g := range p.Anycast {
		if err := freeToShare(g.Addr, holder); err != nil {
			return address.Set{}, err
		}
	}
	t.Anycast = p.Anycast
	return t, nil
}

// OwnerOf names the workload that may have its addresses back before the end of their
// quarantine. It is empty for what is not a pod of Kubernetes.
func OwnerOf(w embed.Workload) ipam.Owner {
	if w.Namespace == "" || w.App == "" {
		return ""
	}
	return ipam.Owner(w.Namespace + "/" + w.App)
}

func (s Source) request(f ipam.Family, w embed.Workload) ipam.Request {
	r := ipam.Request{Family: f, Within: s.Within, Owner: OwnerOf(w)}
	if len(s.Algo) > 0 {
		r.Near = func(prefix netip.Prefix) netip.Addr { return embed.Address(prefix, s.Algo, w) }
	}
	return r
}
