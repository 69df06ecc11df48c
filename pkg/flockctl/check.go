package flockctl

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/fleet"
	"flock.fritzlab.net/flock/pkg/support"
)

var checkCommand = command{
	name: "check", args: "[NODE]",
	short: "List what is wrong, with the remedy; the exit status is 1 if anything is",
	long: `What the agents report is in it: every condition that is not True, among them what
shadows or blocks flock on a node. So is what the objects alone show: invalid
AddressPools, pod CIDRs that overlap those of other nodes, a pool or a node's address;
a kernel, runtime, kubelet or API server that is too old (docs/supported.md).

With --local, on a node, it looks at that node's kernel: features that it lacks, routes
that win over flock's, firewalls, settings, what another network plugin has left behind.
What is only a risk is there too, which no condition has.`,
	examples: `flockctl check
flockctl check node1
flockctl check --local
flockctl check -o json | jq -r '.[] | select(.object == "node1") | .problem'`,
	flags: []string{"output", "local", "watch"}, max: 1,
	run: runCheck,
}

// problem is something that is wrong.
type problem struct {
	Object  string `json:"object"` // a node, or kind and name
	Problem string `json:"problem"`
}

func runCheck(ctx context.Context, s *session, args []string) error {
	if s.local {
		if len(args) > 0 {
			return usageError("--local is about the node that flockctl runs on: leave out NODE")
		}
		found, err := kernelProblems()
		if err != nil {
			return err
		}
		return s.printProblems(found, 1)
	}
	c, err := s.connect()
	if err != nil {
		return err
	}
	nodes, _, found, err := c.check(ctx, s.remarks)
	if err != nil {
		return err
	}
	checked := len(nodes)
	if len(args) == 1 {
		if !slices.ContainsFunc(nodes, func(n node) bool { return n.name == args[0] }) {
			_, err := c.nodeConfig(ctx, args[0]) // says which there are
			return err
		}
		found = slices.DeleteFunc(found, func(p problem) bool { return p.Object != args[0] })
		checked = 1
	}
	return s.printProblems(found, checked)
}

// printProblems prints what was found on so many nodes, and makes an error of it.
func (s *session) printProblems(found []problem, checked int) error {
	if s.output != "" {
		if err := s.structured(found); err != nil {
			return err
		}
	} else {
		var rows [][]string
		for _, p := range found {
			rows = append(rows, []string{p.Object, p.Problem})
		}
		table(s.out, "", rows)
	}
	if len(found) > 0 {
		return fmt.Errorf("%d problem(s), %d node(s) checked", len(found), checked)
	}
	if s.output == "" {
		fmt.Fprintf(s.out, "%d node(s) checked, nothing is wrong\n", checked)
	}
	return nil
}

// check reads nodes and pools and looks for what is wrong with them. It remarks on what it
// may not read.
func (c *cluster) check(ctx context.Context, remarks io.Writer) (nodes []node, pools []v1alpha1.AddressPool, found []problem, err error) {
	if nodes, err = c.nodes(ctx); err != nil {
		return nil, nil, nil, err
	}
	if pools, err = c.pools(ctx); err != nil {
		return nil, nil, nil, err
	}
	if slices.ContainsFunc(nodes, func(n node) bool { return n.agentsUnknown }) {
		fmt.Fprintf(remarks, "not checked whether the agents are Ready: the pods of %s cannot be listed\n", flockNamespace)
	}
	// Who may not read nodes misses what is known of them alone.
	objects, err := c.nodeObjects(ctx)
	if err != nil {
		fmt.Fprintf(remarks, "not checked against the nodes' addresses and versions: %v\n", err)
	}
	found = append(problems(nodes, pools, nodeAddressesOf(objects)), tooOld(nodes, objects)...)
	version, err := c.version(ctx)
	if err != nil {
		fmt.Fprintf(remarks, "the API server's version is not checked: %v\n", err)
	}
	for _, f := range support.APIServer(version) {
		found = append(found, problem{f.Object, without(f)})
	}
	return nodes, pools, found, nil
}

// tooOld are the nodes that flock does not work on, of those whose agent has not reported
// that itself: it may not run because of it.
func tooOld(nodes []node, objects []corev1.Node) (found []problem) {
	for _, o := range objects {
		i := slices.IndexFunc(nodes, func(n node) bool { return n.name == o.Name })
		if i < 0 || nodes[i].condition("Supported") != none {
			continue
		}
		info := o.Status.NodeInfo
		for _, f := range support.Node(info.KernelVersion, info.ContainerRuntimeVersion, info.KubeletVersion) {
			if f.Breaks {
				found = append(found, problem{o.Name, f.String()})
			}
		}
	}
	return found
}

// without is a finding without its object.
func without(f support.Finding) string { return strings.TrimPrefix(f.String(), f.Object+": ") }

// problems are those of all nodes, then those of AddressPools. It is pure.
func problems(nodes []node, pools []v1alpha1.AddressPool, addresses map[string][]netip.Addr) []problem {
	found := []problem{}
	add := func(object, format string, args ...any) {
		found = append(found, problem{object, fmt.Sprintf(format, args...)})
	}
	cidrs := map[string][]netip.Prefix{}
	var holdings []fleet.Holding
	for _, n := range nodes {
		if n.config != nil {
			if parsed, err := config.ParseNode(n.config); err == nil {
				cidrs[n.name] = parsed.Summaries()
				for _, p := range cidrs[n.name] {
					holdings = append(holdings, fleet.Holding{Node: n.name, Prefix: p})
				}
			}
		}
	}
	overlaps := fleet.Overlaps(holdings)
	for _, n := range nodes {
		for _, p := range n.problems() {
			add(n.name, "%s", p)
		}
		for _, o := range overlaps[n.name] {
			add(n.name, "pod CIDR %s", o)
		}
		for _, cidr := range cidrs[n.name] {
			for _, other := range nodes {
				for _, a := range addresses[other.name] {
					if cidr.Contains(a) {
						add(n.name, "pod CIDR %s contains %s, the address of node %s, which a pod could get: choose another CIDR", cidr, a, other.name)
					}
				}
			}
		}
	}
	slices.SortFunc(pools, func(a, b v1alpha1.AddressPool) int { return strings.Compare(a.Name, b.Name) })
	for i := range pools {
		object := "AddressPool " + pools[i].Name
		pool, err := config.ParsePool(&pools[i])
		if err != nil {
			add(object, "it grants nothing: %v", err)
		}
		for _, cidr := range pool.CIDRs {
			for _, n := range nodes {
				for _, a := range addresses[n.name] {
					if cidr.Contains(a) {
						add(object, "%s contains %s, the address of node %s, which a pod could get: choose another CIDR", cidr, a, n.name)
					}
				}
			}
		}
	}
	return found
}
