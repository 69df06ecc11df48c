package nodeguard

import (
	"fmt"
	"net/netip"

	"flock.fritzlab.net/flock/pkg/pod"
)

// Desired is what the rules are made of.
type Desired struct {
	// OnLink are the subnets of the node's own links.
	OnLink []netip.Prefix
	// BGPPort is the TCP port that the routing daemon listens on; 0: it does not.
	BGPPort uint16
}

// Port is a port of the node that belongs to the routing daemon.
type Port struct {
	Protocol string // a key of pod.Protocols
	Number   uint16
	Of       string // for people: "BGP"
}

// Ports are those of the routing daemon.
func (d Desired) Ports() (ports []Port) {
	if d.BGPPort != 0 {
		ports = append(ports, Port{"tcp", d.BGPPort, "BGP"})
	}
	return append(ports,
		Port{"udp", 3784, "BFD"}, Port{"udp", 3785, "BFD"}, // RFC 5881
		Port{"udp", 4784, "BFD"}) // RFC 5883
}

// MaxHostPorts is how many ports of the node may lead to one pod. All host ports of a node
// are one table, which each pod with such ports has to be written into.
const MaxHostPorts = 256

// CheckHostPorts returns an error if a pod may not have these ports of the node: routers
// would reach the pod in place of the routing daemon.
func (d Desired) CheckHostPorts(ports []pod.HostPort) error {
	if len(ports) > MaxHostPorts {
		return fmt.Errorf("%d host ports: a pod may have %d at most", len(ports), MaxHostPorts)
	}
	for _, p := range ports {
		for _, own := range d.Ports() {
			if p.HostPort == own.Number && p.Protocol == own.Protocol {
				return fmt.Errorf("hostPort %d/%s is the port of the node's routing daemon (%s): choose another", p.HostPort, p.Protocol, own.Of)
			}
		}
	}
	return nil
}
