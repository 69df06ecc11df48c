package bird

import (
	"reflect"

	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/routing"
)

// renderPools writes a function for each family that has pools with attributes,
// which the export filters call, and returns those families.
func renderPools(c *conf, pools []routing.PoolRoutes) map[family]bool {
	of := map[family][]routing.PoolRoutes{}
	for _, p := range pools {
		for _, f := range families {
			if f.has(p.Within) {
				of[f] = append(of[f], p)
			}
		}
	}
	rendered := map[family]bool{}
	for _, f := range families {
		if len(of[f]) == 0 {
			continue
		}
		if len(rendered) == 0 {
			c.add(poolsComment)
		}
		rendered[f] = true
		c.add("function flock_pools%s(int own_as; bool same_as) {\n", f)
		for rest := of[f]; len(rest) > 0; {
			rest = renderPool(c, rest)
		}
		c.add("\treturn false;\n}\n")
	}
	return rendered
}

const poolsComment = `
# What AddressPools give the routes of their addresses, in addition to what a peer
# has or in place of it. The longest prefix decides. True: the AS is prepended.
`

// renderPool writes what goes with the first prefix and those after it that have
// the same, and returns the rest.
func renderPool(c *conf, pools []routing.PoolRoutes) (rest []routing.PoolRoutes) {
	first := pools[0]
	hosts, all := list{}, list{} // host routes, and all within
	for rest = pools; len(rest) > 0 && rest[0].SameAs(first); rest = rest[1:] {
		within, bits := rest[0].Within, rest[0].Within.Addr().BitLen()
		hosts = append(hosts, match{Prefix: within, Min: bits, Max: bits})
		all = append(all, match{Prefix: within, Min: within.Bits(), Max: bits})
	}
	clause := func(condition string, e config.Export, terms ...term) {
		c.add("\tif "+condition+"net ~ [ %s ] then {\n", terms...)
		renderAttributes(c, "\t\t", e, "if same_as then ")
		c.addIf(e.Prepend > 0, "\t\tif same_as then return false;\n") // the router would see a loop
		renderPrepend(c, "\t\t", e.Prepend, symbol{"own_as"})
		c.add("\t\treturn %s;\n\t}\n", boolean(e.Prepend > 0))
	}
	bits := number(first.Within.Addr().BitLen())
	pods := reflect.DeepEqual(first.Static, first.Anycast)
	switch {
	case pods && reflect.DeepEqual(first.Static, first.Service):
		// A summary of the node may be in a pool too, and is none of its addresses.
		clause("(net.len = %s || krt_metric = %s) && ", first.Static, bits, number(kernel.MetricService), all)
		return rest
	case pods:
		clause("krt_metric = %s && ", first.Service, number(kernel.MetricService), all)
		clause("", first.Static, hosts)
	default:
		clause("krt_metric = %s && ", first.Service, number(kernel.MetricService), all)
		clause("krt_metric = %s && ", first.Static, number(kernel.MetricStatic), hosts)
		clause("krt_metric != %s && ", first.Anycast, number(kernel.MetricStatic), hosts)
	}
	return rest
}
