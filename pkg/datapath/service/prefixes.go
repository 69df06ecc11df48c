package service

import (
	"net/netip"
	"slices"
	"time"
)

// overlapTime is for how long an address is announced as before too, once the kernel has what it is
// announced by now: the routing daemon and the routers need a moment for it, and may learn of both
// changes in either order.
const overlapTime = 5 * time.Second

// former are the prefixes by which a path was announced, and still is until routers have those by
// which it is announced now.
type former struct {
	prefixes []netip.Prefix
	until    time.Time // zero: the kernel does not have the others yet
}

// prefixes are those by which a path is announced, if it is: its pool's, that of the address, or
// both.
func (p *path) prefixes() (all []netip.Prefix) {
	if p.address.Aggregate.IsValid() {
		all = append(all, p.address.Aggregate)
	}
	if !p.address.Aggregate.IsValid() || p.service.policy(p.address) == Local {
		all = append(all, hostPrefix(p.address.Addr))
	}
	return all
}

// allPorts are the ports of a path's Service, and then those that it had before.
func (p *path) allPorts() []Port {
	if len(p.ports) == 0 {
		return p.service.Ports
	}
	all := slices.Clone(p.service.Ports)
	for _, port := range p.ports {
		if !slices.Contains(all, port) {
			all = append(all, port)
		}
	}
	return all
}

// announcedBy are the prefixes by which the addresses of a Service are announced.
func announcedBy(svc *serviceState) map[*path][]netip.Prefix {
	all := map[*path][]netip.Prefix{}
	for _, p := range svc.paths {
		if p.announced {
			all[p] = p.prefixes()
		}
	}
	return all
}

// unclaimed are the prefixes that an earlier run announced as a whole, and by which none of these
// Services is announced now: their pools are not aggregated any more.
func (s *State) unclaimed(all []*Service) (out []netip.Prefix) {
	if s.servicesKnown {
		return nil
	}
	claimed := map[netip.Prefix]bool{}
	for _, svc := range all {
		for _, a := range svc.Addresses {
			claimed[a.Aggregate] = true
		}
	}
	for prefix, e := range s.kept {
		if e.Announced && !prefix.IsSingleIP() && !claimed[prefix] {
			out = append(out, prefix)
		}
	}
	return out
}

// keptBy are the prefixes by which an earlier run announced an address.
func (s *State) keptBy(addr netip.Addr, a Address, unclaimed []netip.Prefix) (by []netip.Prefix) {
	for _, prefix := range []netip.Prefix{hostPrefix(addr), a.Aggregate} {
		if s.kept[prefix].Announced {
			by = append(by, prefix)
		}
	}
	for _, prefix := range unclaimed {
		if prefix.Contains(addr) {
			by = append(by, prefix)
		}
	}
	return by
}

// replace has a path go on being announced by the prefixes of before, until others can have taken
// their place.
func (s *State) replace(now time.Time, p *path, before []netip.Prefix) {
	is := p.prefixes()
	keep := slices.DeleteFunc(p.former.prefixes, func(prefix netip.Prefix) bool { return slices.Contains(is, prefix) })
	for _, prefix := range before {
		if !slices.Contains(is, prefix) && !slices.Contains(keep, prefix) {
			keep = append(keep, prefix)
			p.former.until = time.Time{}
		}
	}
	s.keepFormer(now, p, keep)
}

// keepFormer makes these the former prefixes of a path.
func (s *State) keepFormer(now time.Time, p *path, prefixes []netip.Prefix) {
	for _, prefix := range p.former.prefixes {
		s.dirty[prefix] = struct{}{}
	}
	p.former.prefixes = prefixes
	if len(prefixes) > 0 {
		s.moving[p] = struct{}{}
	} else {
		p.former = former{}
		delete(s.moving, p)
	}
	s.index(now, p, append(p.prefixes(), prefixes...))
}

// index makes these the prefixes that a path is found by, but for its own. What still arrives for
// one that no path is found by any more is refused for a while.
func (s *State) index(now time.Time, p *path, prefixes []netip.Prefix) {
	var aggregates []netip.Prefix
	for _, prefix := range prefixes {
		if prefix == hostPrefix(p.address.Addr) {
			continue
		}
		aggregates = append(aggregates, prefix)
		if s.inside[prefix] == nil {
			s.inside[prefix] = map[*path]struct{}{}
		}
		s.inside[prefix][p] = struct{}{}
	}
	for _, prefix := range p.aggregates {
		if slices.Contains(aggregates, prefix) {
			continue
		}
		s.dirty[prefix] = struct{}{}
		delete(s.inside[prefix], p)
		if len(s.inside[prefix]) == 0 {
			delete(s.inside, prefix)
			s.linger[prefix] = now.Add(LingerTime)
		}
	}
	p.aggregates = aggregates
}

// Moving says whether an address is still announced by prefixes of before, and Confirm is to be
// called.
func (s *State) Moving() bool { return len(s.moving) > 0 }

// Confirm takes in what the kernel has.
func (s *State) Confirm(now time.Time, kernel map[netip.Prefix]Entry) {
	for p := range s.moving {
		lacks := slices.ContainsFunc(p.prefixes(), func(prefix netip.Prefix) bool { return !kernel[prefix].Announced })
		switch {
		case lacks:
			p.former.until = time.Time{}
		case p.former.until.IsZero():
			p.former.until = now.Add(overlapTime)
		}
	}
}

// tickFormer withdraws former prefixes that others have taken the place of.
func (s *State) tickFormer(now time.Time) {
	for p := range s.moving {
		if !p.former.until.IsZero() && !now.Before(p.former.until) {
			s.keepFormer(now, p, nil)
		}
	}
}

// nextFormer is when tickFormer has something to do, or zero if never.
func (s *State) nextFormer() (next time.Time) {
	for p := range s.moving {
		next = earliest(next, p.former.until)
	}
	return next
}
