package bird

import (
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/routing"
)

// renderBFD writes the protocol that all BFD sessions run in. It listens for
// direct and multihop sessions alike, since a change of that would restart those
// of all peers. BGP's sessions bring their own intervals, OSPF's have those of
// their interface.
func renderBFD(c *conf, in routing.Intent) {
	var wanted bool
	var ospf []config.OSPFInterface
	if in.BGP != nil {
		for _, p := range in.BGP.Peers {
			wanted = wanted || p.BFD != nil
		}
	}
	if in.OSPF != nil {
		for _, i := range in.OSPF.Interfaces {
			if i.BFD != nil {
				wanted, ospf = true, append(ospf, i)
			}
		}
	}
	if !wanted {
		return
	}
	c.add("\nprotocol bfd {\n")
	for _, i := range ospf {
		c.add("\tinterface %s {", interfaceName(i.Name))
		renderBFDIntervals(c, *i.BFD)
		c.add(" };\n")
	}
	c.add("}\n")
}

func renderBFDIntervals(c *conf, b config.BFD) {
	c.add(" min rx interval %s; min tx interval %s; multiplier %s;", millis(b.Receive), millis(b.Transmit), number(b.Multiplier))
}
