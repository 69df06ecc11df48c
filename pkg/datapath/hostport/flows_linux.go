package hostport

import (
	"maps"
	"slices"

	"flock.fritzlab.net/flock/internal/netaddr"
	"flock.fritzlab.net/flock/internal/netns"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/netlink/conntrack"
)

// noteFlows notes that flows to the UDP ports of bindings are to be decided again, and says whether
// there are such ports. A client that goes on sending would be translated to a pod that is gone,
// or not at all. The caller holds mu.
func (p *Ports) noteFlows(bindings []Binding) (noted bool) {
	for _, b := range bindings {
		for _, port := range b.Ports {
			if port.Protocol == "udp" {
				p.undecided[port.HostPort], noted = true, true
			}
		}
	}
	return noted
}

// decideFlows has the kernel decide again for flows that are due for it. What fails is tried
// again by the next change of UDP ports, and by Sync, which is called until it succeeds. The
// caller does not hold mu: the kernel's table takes long to look through, and one look is for the
// ports of all pods that came during the last one.
func (p *Ports) decideFlows() error {
	p.deciding.Lock()
	defer p.deciding.Unlock()
	p.mu.Lock()
	ports := p.undecided
	p.undecided = map[uint16]bool{}
	p.mu.Unlock()
	if len(ports) == 0 {
		return nil
	}
	err := netns.Do(p.netns, func() error {
		addrs, err := sys.InterfaceAddrs()
		if err != nil {
			return err
		}
		local := netaddr.Held(addrs)
		return conntrack.ForgetUDP(ports, func(f conntrack.Flow) bool { return slices.Contains(local, f.To.Addr()) })
	})
	if err != nil {
		p.mu.Lock()
		maps.Copy(p.undecided, ports)
		p.mu.Unlock()
	}
	return err
}
