package bird

import (
	"bytes"
	"net/netip"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/routing"
)

// departingCost is the highest that does not make a route unreachable (LSInfinity is
// 0xffffff, RFC 2328 appendix B).
const departingCost = number(1<<24 - 2)

// renderOSPF writes one instance of OSPF for each family.
func renderOSPF(c *conf, in routing.Intent) {
	for _, f := range families {
		if speaks(in.OSPF, f) {
			renderInstance(c, in, f)
		}
	}
}

func renderInstance(c *conf, in routing.Intent, f family) {
	o, cost := in.OSPF, number(in.OSPF.Cost)
	version := number(3)
	if f == ipv4 && !o.IPv4OverV3 {
		version = 2
	}
	c.add("\nprotocol ospf v%s ospf%s {\n\trouter id %s;\n", version, f, addr(o.RouterID))
	c.add("\tgraceful restart on;\n\tgraceful restart time %s;\n\tmerge external on;\n\tdebug { states };\n", seconds(config.DefaultRestart))
	c.add("\tipv%s {\n", f)
	renderImport(c, o.Import, f, "")
	c.add(exportable)
	if in.Departing {
		renderWithoutAnycast(c, f)
		cost = departingCost
	}
	if o.External1 {
		c.add("\t\t\tospf_metric1 = %s;\n", cost)
	} else {
		c.add("\t\t\tospf_metric2 = %s;\n", cost)
	}
	c.add("\t\t\taccept;\n\t\t};\n\t};\n\tarea %s {\n", addr(area(o)))
	for _, i := range o.Interfaces {
		algorithm := algorithm(i, f)
		if algorithm == "" {
			renderInterface(c, i, func() {})
			continue
		}
		pw, ok := in.Passwords[i.Authentication.Password]
		if !ok {
			c.add("\t\t# %s: its password is not known yet\n", interfaceName(i.Name))
			continue
		}
		renderInterface(c, i, func() {
			c.add("\t\t\tauthentication cryptographic;\n\t\t\tpassword %s { id %s; algorithm %s; };\n", secret(pw), number(i.Authentication.KeyID), hash(algorithm))
		})
	}
	c.add("\t};\n}\n")
}

// area is the backbone unless o says otherwise.
func area(o *config.OSPF) netip.Addr {
	if !o.Area.IsValid() {
		return netip.IPv4Unspecified()
	}
	return o.Area
}

func renderInterface(c *conf, i config.OSPFInterface, authentication func()) {
	c.add("\t\tinterface %s {\n", interfaceName(i.Name))
	if i.PointToPoint {
		c.add("\t\t\ttype ptp;\n")
	} else {
		c.add("\t\t\ttype broadcast;\n\t\t\tpriority %s;\n", number(i.Priority))
	}
	c.add("\t\t\tcost %s;\n\t\t\thello %s;\n\t\t\tdead %s;\n", number(i.Cost), seconds(i.Hello), seconds(i.Dead))
	c.addIf(i.BFD != nil, "\t\t\tbfd on;\n")
	authentication()
	c.add("\t\t};\n")
}

// algorithm authenticates a family on an interface; "" for none.
func algorithm(i config.OSPFInterface, f family) v1alpha1.OSPFAlgorithm {
	switch {
	case i.Authentication == nil:
		return ""
	case f == ipv6:
		return i.Authentication.IPv6
	}
	return i.Authentication.IPv4
}

// hash is BIRD's name of an algorithm.
func hash(a v1alpha1.OSPFAlgorithm) symbol {
	switch a {
	case v1alpha1.OSPFMD5:
		return symbol{"keyed md5"}
	case v1alpha1.OSPFSHA384:
		return symbol{"hmac sha384"}
	case v1alpha1.OSPFSHA512:
		return symbol{"hmac sha512"}
	}
	return symbol{"hmac sha256"}
}

// speaksOSPF reports whether a rendered configuration has an instance of OSPF.
func speaksOSPF(conf []byte) bool { return bytes.Contains(conf, []byte("\nprotocol ospf ")) }

// speaks reports whether OSPF is spoken for a family.
func speaks(o *config.OSPF, f family) bool {
	return f == ipv6 && o.IPv6 || f == ipv4 && o.IPv4
}
