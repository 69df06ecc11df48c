package hostport

import (
	"errors"
	"net/netip"

	"flock.fritzlab.net/flock/internal/netns"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/netlink/conntrack"
)

// forgetFlows makes the kernel decide again for UDP flows to ports of the node. A client
// that goes on sending would be translated to a pod that is gone, or not at all.
func (p *Ports) forgetFlows(bindings ...Binding) error {
	ports := map[uint16]bool{}
	for _, b := range bindings {
		for _, port := range b.Ports {
			if port.Protocol == "udp" {
				ports[port.HostPort] = true
			}
		}
	}
	if len(ports) == 0 {
		return nil
	}
	return netns.Do(p.netns, func() error {
		local, err := localAddrs()
		if err != nil {
			return err
		}
		var errs []error
		for port := range ports {
			errs = append(errs, conntrack.ForgetUDP(port, func(f conntrack.Flow) bool { return local[f.To.Addr()] }))
		}
		return errors.Join(errs...)
	})
}

// localAddrs are the addresses of the calling thread's network namespace.
func localAddrs() (map[netip.Addr]bool, error) {
	addrs, err := sys.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	local := map[netip.Addr]bool{}
	for _, a := range addrs {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			local[prefix.Addr().Unmap()] = true
		}
	}
	return local, nil
}
