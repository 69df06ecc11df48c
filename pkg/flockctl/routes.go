package flockctl

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

var routesCommand = command{
	name: "routes", args: "[NODE]",
	short: "Show the prefixes that each node announces, or one node, and what for",
	long: `The pod CIDRs of each node, the static addresses that its pods have claimed, and the
anycast addresses and addresses of Services that it announces. It is what the
NodeConfigs, the claims and the agents' last reports give; "birdc show route export" on
a node has what a router got.`,
	examples: `flockctl routes
flockctl routes node1
flockctl routes -o json | jq -r '.[].prefix'`,
	flags: []string{"output", "watch"}, max: 1,
	run: runRoutes,
}

// announced is a prefix that a node announces.
type announced struct {
	Prefix string `json:"prefix"`
	Node   string `json:"node"`
	Kind   string `json:"kind"` // pod CIDR, retired CIDR, static, anycast or service
	For    string `json:"for,omitempty"`
}

func runRoutes(ctx context.Context, s *session, args []string) error {
	c, err := s.connect()
	if err != nil {
		return err
	}
	var configs []v1alpha1.NodeConfig
	if len(args) == 1 {
		nc, err := c.nodeConfig(ctx, args[0])
		if err != nil {
			return err
		}
		configs = []v1alpha1.NodeConfig{*nc}
	} else if configs, err = c.nodeConfigs(ctx); err != nil {
		return err
	}
	claims := &v1alpha1.AddressClaimList{}
	if err := c.list(ctx, c.flock, "addressclaims", "", "", "", claims); err != nil {
		return err
	}
	routes := routesOf(configs, claims.Items)
	if s.output != "" {
		return s.structured(routes)
	}
	c.remarkSilent(ctx, s.remarks, configs)
	if len(routes) == 0 {
		fmt.Fprintln(s.out, "No node announces a prefix.")
		return nil
	}
	rows := [][]string{{"PREFIX", "NODE", "KIND", "FOR"}}
	for _, r := range routes {
		rows = append(rows, []string{r.Prefix, r.Node, r.Kind, or(r.For, none)})
	}
	table(s.out, "", rows)
	for _, nc := range configs {
		if len(nc.Status.Services) >= mostServices || len(nc.Status.Anycast) >= mostPaths {
			fmt.Fprintf(s.out, "\nNode %s may announce more: its status holds %d anycast addresses and %d of Services.\n", nc.Name, mostPaths, mostServices)
		}
	}
	return nil
}

// routesOf is pure. A node that announces an anycast address for several pods, or a prefix
// for several Services, has one route for it.
func routesOf(configs []v1alpha1.NodeConfig, claims []v1alpha1.AddressClaim) []announced {
	routes := []announced{}
	host := func(text string) string {
		if a, err := netip.ParseAddr(text); err == nil {
			return netip.PrefixFrom(a, a.BitLen()).String()
		}
		return text
	}
	for i := range configs {
		nc := &configs[i]
		if node, err := config.ParseNode(nc); err == nil {
			for _, p := range node.Summaries() {
				routes = append(routes, announced{Prefix: p.String(), Node: nc.Name, Kind: "pod CIDR"})
			}
		}
		for _, p := range nc.Status.RetiredCIDRs {
			routes = append(routes, announced{Prefix: p, Node: nc.Name, Kind: "retired CIDR"})
		}
		for _, claim := range claims {
			if claim.Spec.NodeName == nc.Name && claim.Spec.QuarantinedUntil == nil {
				routes = append(routes, announced{host(claim.Spec.Address), nc.Name, "static", claim.Spec.PodNamespace + "/" + claim.Spec.PodName})
			}
		}
		of := map[string]int{}
		add := func(prefix, kind, who string) {
			if j, ok := of[prefix]; ok {
				if !slices.Contains(strings.Split(routes[j].For, ", "), who) {
					routes[j].For += ", " + who
				}
				return
			}
			of[prefix] = len(routes)
			routes = append(routes, announced{prefix, nc.Name, kind, who})
		}
		for _, p := range pathsOf([]v1alpha1.NodeConfig{*nc}) {
			if p.Announced {
				add(host(p.Address), "anycast", p.Pod)
			}
		}
		for _, st := range nc.Status.Services {
			if st.Announced {
				add(or(st.Prefix, host(st.Address)), "service", st.Service)
			}
		}
	}
	slices.SortStableFunc(routes, func(a, b announced) int {
		x, errX := netip.ParsePrefix(a.Prefix)
		y, errY := netip.ParsePrefix(b.Prefix)
		if errX != nil || errY != nil {
			return strings.Compare(a.Prefix, b.Prefix)
		}
		return cmp.Or(byAddress(x.Addr().String(), y.Addr().String()), x.Bits()-y.Bits(), strings.Compare(a.Node, b.Node))
	})
	return routes
}
