package flockctl

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

var anycastCommand = command{
	name: "anycast", args: "[ADDRESS]",
	short: "Show the anycast addresses: their pods, whether they are announced, since when and why",
	long: `A line for each pod at each anycast address of the cluster, as the agents of the
nodes see it. With an address: that one, and the AddressPool that grants it. A pod
that asks for an address and did not get it is not here: see flockctl pod.`,
	examples: `flockctl anycast
flockctl anycast 2001:db8::53
flockctl anycast -o json | jq -r '.[] | select(.announced | not) | .pod'`,
	flags: []string{"output", "watch"}, max: 1,
	run: runAnycast,
}

// path is one pod at one anycast address.
type path struct {
	Address   string    `json:"address"`
	Pod       string    `json:"pod"`
	Node      string    `json:"node"`
	Announced bool      `json:"announced"`
	Reason    string    `json:"reason"`
	Message   string    `json:"message,omitempty"`
	Since     time.Time `json:"since"`
}

// mostPaths is how many the status of a node holds.
const mostPaths = 256

func runAnycast(ctx context.Context, s *session, args []string) error {
	var addr netip.Addr
	if len(args) == 1 {
		var err error
		if addr, err = netip.ParseAddr(args[0]); err != nil {
			return usageError(fmt.Sprintf("%q is not an address: want an address as in 2001:db8::53 or 203.0.113.53", args[0]))
		}
	}
	c, err := s.connect()
	if err != nil {
		return err
	}
	all, err := c.nodeConfigs(ctx)
	if err != nil {
		return err
	}
	paths := pathsOf(all)
	if !addr.IsValid() {
		if s.output != "" {
			return s.structured(paths)
		}
		c.remarkSilent(ctx, s.remarks, all)
		s.printPaths(s.out, paths, all)
		return nil
	}
	paths = slices.DeleteFunc(paths, func(p path) bool { return p.Address != addr.String() })
	if s.output != "" && len(paths) > 0 {
		return s.structured(paths)
	}
	pools, err := c.pools(ctx)
	if err != nil {
		return err
	}
	granting := describePools(pools, addr)
	if len(paths) == 0 {
		return fmt.Errorf("no pod holds anycast address %s. %s. What keeps a pod from having it: flockctl pod NAMESPACE/NAME", addr, strings.Join(granting, "; "))
	}
	c.remarkSilent(ctx, s.remarks, all)
	s.printPaths(s.out, paths, nil)
	fmt.Fprintln(s.out)
	for _, line := range granting {
		fmt.Fprintln(s.out, line)
	}
	return nil
}

// pathsOf are those of all nodes, by address, IPv6 first.
func pathsOf(all []v1alpha1.NodeConfig) []path {
	paths := []path{}
	for _, nc := range all {
		for _, a := range nc.Status.Anycast {
			paths = append(paths, path{a.Address, a.Pod, nc.Name, a.Announced, a.Reason, a.Message, a.Since.Time})
		}
	}
	slices.SortFunc(paths, func(a, b path) int {
		return cmp.Or(byAddress(a.Address, b.Address), strings.Compare(a.Node, b.Node), strings.Compare(a.Pod, b.Pod))
	})
	return paths
}

func (s *session) printPaths(w io.Writer, paths []path, all []v1alpha1.NodeConfig) {
	if len(paths) == 0 {
		fmt.Fprintln(w, "No pod has an anycast address: see docs/anycast.md for how one gets it.")
		return
	}
	table(w, "", s.pathRows(paths, "ADDRESS", "POD", "NODE"))
	for _, nc := range all {
		if len(nc.Status.Anycast) >= mostPaths {
			fmt.Fprintf(w, "\nNode %s may have more: its status holds %d, those that are not announced first.\n", nc.Name, mostPaths)
		}
	}
}

// pathRows are a table that begins with some of the columns ADDRESS, POD and NODE.
func (s *session) pathRows(paths []path, columns ...string) [][]string {
	rows := [][]string{append(columns, "ANNOUNCED", "SINCE", "WHY")}
	for _, p := range paths {
		var row []string
		for _, c := range columns {
			row = append(row, map[string]string{"ADDRESS": p.Address, "POD": p.Pod, "NODE": p.Node}[c])
		}
		why := p.Reason
		if p.Message != "" {
			why += ": " + p.Message
		}
		rows = append(rows, append(row, yesNo(p.Announced), s.age(p.Since), why))
	}
	return rows
}

// describePools says which of the pools decide about addr, those with the longest
// prefix around it, and what they put on its routes.
func describePools(all []v1alpha1.AddressPool, addr netip.Addr) []string {
	longest := -1
	var out, useless []string
	slices.SortFunc(all, func(a, b v1alpha1.AddressPool) int { return strings.Compare(a.Name, b.Name) })
	for i := range all {
		pool, err := config.ParsePool(&all[i])
		if err != nil {
			useless = append(useless, fmt.Sprintf("AddressPool %s grants nothing: %v", all[i].Name, err))
			continue
		}
		cidr, covers := pool.Covering(addr)
		if !covers || cidr.Bits() < longest {
			continue
		}
		if cidr.Bits() > longest {
			longest, out = cidr.Bits(), nil
		}
		line := fmt.Sprintf("AddressPool %s (%s) grants it as %s", pool.Name, cidr, join(all[i].Spec.Uses, " and "))
		if with := attributes(all[i].Spec.Routing); with != "" {
			line += ", with " + with
		}
		out = append(out, line)
	}
	if longest < 0 {
		out = append(out, fmt.Sprintf("No AddressPool covers %s, so no pod is given it", addr))
	}
	return append(out, useless...)
}

// attributes are what a pool puts on routes, in the words of its fields.
func attributes(r v1alpha1.PoolRouting) string {
	var out []string
	if len(r.Communities) > 0 {
		out = append(out, "communities "+join(r.Communities, " "))
	}
	if len(r.LargeCommunities) > 0 {
		out = append(out, "largeCommunities "+join(r.LargeCommunities, " "))
	}
	if r.LocalPreference != nil {
		out = append(out, fmt.Sprintf("localPreference %d", *r.LocalPreference))
	}
	if r.MED != nil {
		out = append(out, fmt.Sprintf("med %d", *r.MED))
	}
	if r.Prepend > 0 {
		out = append(out, fmt.Sprintf("prepend %d", r.Prepend))
	}
	if r.AnnounceDelay != nil {
		out = append(out, fmt.Sprintf("announceDelay %s", r.AnnounceDelay.Duration))
	}
	return strings.Join(out, ", ")
}
