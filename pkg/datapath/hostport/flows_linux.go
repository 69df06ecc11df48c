package hostport

import (
	"errors"
	"slices"

	"flock.fritzlab.net/flock/internal/netaddr"
	"flock.fritzlab.net/flock/internal/netns"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/netlink/conntrack"
)

// noteFlows notes that flows to the UDP ports of bindings are to be decided again. A client that
// goes on sending would be translated to a pod that is gone, or not at all.
func (p *Ports) noteFlows(bindings []Binding) {
	for _, b := range bindings {
		for _, port := range b.Ports {
			if port.Protocol == "udp" {
				p.undecided[port.HostPort] = true
			}
		}
	}
}

// decideFlows has the kernel decide again for flows that are due for it. What fails is tried
// again by the next change, and by Sync, which is called until it succeeds.
func (p *Ports) decideFlows() error {
	if len(p.undecided) == 0 {
		return nil
	}
	err := netns.Do(p.netns, func() error {
		addrs, err := sys.InterfaceAddrs()
		if err != nil {
			return err
		}
		local := netaddr.Held(addrs)
		var errs []error
		for port := range p.undecided {
			errs = append(errs, conntrack.ForgetUDP(port, func(f conntrack.Flow) bool { return slices.Contains(local, f.To.Addr()) }))
		}
		return errors.Join(errs...)
	})
	if err == nil {
		clear(p.undecided)
	}
	return err
}
