package hostport

import (
	"errors"
	"slices"

	"flock.fritzlab.net/flock/internal/netaddr"
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
		addrs, err := sys.InterfaceAddrs()
		if err != nil {
			return err
		}
		local := netaddr.Held(addrs)
		var errs []error
		for port := range ports {
			errs = append(errs, conntrack.ForgetUDP(port, func(f conntrack.Flow) bool { return slices.Contains(local, f.To.Addr()) }))
		}
		return errors.Join(errs...)
	})
}
