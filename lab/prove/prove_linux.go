// Package prove shows that a lab does what it is there for: pods reach one
// another, the host outside and Services, each with its own address, the outside
// host reaches a LoadBalancer Service, and the router knows the way to pods by the
// nodes' summaries alone. It asks from where the
// asking matters, in the pods' own network namespaces, and believes only what the
// other side says that it saw.
package prove

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/fabric"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
)

// proof is a statement and what it rests on.
type proof struct {
	statement string
	tried     int
	failed    []error
}

func (p *proof) try(err error) {
	p.tried++
	if err != nil {
		p.failed = append(p.failed, err)
	}
}

// Run deploys the demo, prints nodes, sessions and pods, and proves. The
// error says which proof failed and in which cases.
func Run(ctx context.Context, l *cluster.Lab, out io.Writer) error {
	began := time.Now()
	demo, err := deploy(ctx, l)
	if err != nil {
		return err
	}
	sessions, err := awaitRouter(ctx, l)
	if err != nil {
		return err
	}
	if err := printTables(ctx, l, demo, sessions, out); err != nil {
		return err
	}

	routes, err := fabric.Routes(l.Dir, plan.Nodes(l.Nodes))
	if err != nil {
		return err
	}
	takesPods, err := takesPods(ctx, l)
	if err != nil {
		return err
	}
	proofs := []proof{
		takesPods,
		summaries(routes, plan.Nodes(l.Nodes), l.Families),
		demo.eachOther(ctx),
		demo.toOutside(ctx),
		demo.fromOutside(ctx, l.Dir),
		demo.service(ctx),
	}
	if l.CNI == cluster.Flock {
		balanced, err := demo.loadBalancer(ctx, l)
		if err != nil {
			return err
		}
		proofs = append(proofs, balanced)
	} else {
		proofs = proofs[1:]
	}
	var wrong []error
	table := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "PROOF\tHOLDS")
	for _, p := range proofs {
		fmt.Fprintf(table, "%s\t%d of %d\n", p.statement, p.tried-len(p.failed), p.tried)
		if p.tried == 0 {
			wrong = append(wrong, fmt.Errorf("%s: there was nothing to try it on", p.statement))
		}
		for _, err := range p.failed[:min(len(p.failed), 8)] {
			wrong = append(wrong, fmt.Errorf("%s: %w", p.statement, err))
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if len(wrong) > 0 {
		return fmt.Errorf("not proved:\n%w", errors.Join(wrong...))
	}
	fmt.Fprintf(out, "\nproved in %.1f s\n", time.Since(began).Seconds())
	return nil
}

// awaitRouter waits for the router to have a session with each node and family,
// and the nodes' routes.
func awaitRouter(ctx context.Context, l *cluster.Lab) ([]fabric.Session, error) {
	var sessions []fabric.Session
	err := process.Await(ctx, "the router to know the nodes", nil, func(context.Context) error {
		var err error
		if sessions, err = l.Sessions(); err != nil {
			return err
		}
		for _, s := range sessions {
			if !s.Established() {
				return fmt.Errorf("%s is %s: see lab exec %s -- birdc show protocols all", s.Name, s.State, plan.Tor)
			}
		}
		routes, err := fabric.Routes(l.Dir, plan.Nodes(l.Nodes))
		if err != nil {
			return err
		}
		return errors.Join(summaries(routes, plan.Nodes(l.Nodes), l.Families).failed...)
	})
	return sessions, err
}

// takesPods checks that the nodes have lost the taint with which they registered, and
// which only flock removes.
func takesPods(ctx context.Context, l *cluster.Lab) (proof, error) {
	p := proof{statement: "every Node takes pods since the router knows the way to them"}
	client, err := l.Client()
	if err != nil {
		return p, err
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return p, err
	}
	for _, n := range nodes.Items {
		up := slices.IndexFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeNetworkUnavailable && c.Status == corev1.ConditionFalse && c.Reason == "FlockIsUp"
		})
		switch {
		case up < 0:
			p.try(fmt.Errorf("node %s: %+v", n.Name, n.Status.Conditions))
		case len(n.Spec.Taints) > 0:
			p.try(fmt.Errorf("node %s has taints: %+v", n.Name, n.Spec.Taints))
		default:
			p.try(nil)
		}
	}
	return p, nil
}

// summaries: for every node one route per family, and none besides in the pods'
// address space.
func summaries(routes []fabric.Route, nodes []plan.Node, families plan.Families) proof {
	p := proof{statement: "the router has each node's summaries and nothing per pod"}
	expected := map[fabric.Route]bool{}
	for _, n := range nodes {
		for i, pods := range families.Of(n.Pods()) {
			via := families.Of(n.LAN())[i].Addr()
			at := slices.IndexFunc(routes, func(r fabric.Route) bool { return r.Prefix == pods && r.Via == via })
			if at < 0 {
				p.try(fmt.Errorf("there is no route %s via %s", pods, via))
				continue
			}
			expected[routes[at]] = true
			p.try(nil)
		}
	}
	for _, r := range routes {
		if !expected[r] && (plan.PodBlock6.Overlaps(r.Prefix) || plan.PodBlock4.Overlaps(r.Prefix)) && r.Prefix.Bits() > 0 {
			p.try(fmt.Errorf("there is a route besides: %s", r))
		}
	}
	return p
}

func printTables(ctx context.Context, l *cluster.Lab, demo *demo, sessions []fabric.Session, out io.Writer) error {
	nodes, err := l.Kubectl(ctx, "", "get", "nodes", "--no-headers")
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "NODE\tSTATUS\tIPV6\tIPV4\tPODS IPV6\tPODS IPV4")
	for _, n := range plan.Nodes(l.Nodes) {
		status := "missing"
		for line := range strings.Lines(nodes) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == n.Name() {
				status = f[1]
			}
		}
		lan, pods := n.LAN(), n.Pods()
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", n.Name(), status, lan.IPv6.Addr(), lan.IPv4.Addr(), pods.IPv6, pods.IPv4)
	}
	heading := "\nBGP SESSION\tSTATE\tSINCE"
	if l.Routing == fabric.OSPF {
		heading = "\nOSPF NEIGHBOR\tSTATE"
	}
	fmt.Fprintln(table, heading)
	for _, s := range sessions {
		since := ""
		if !s.Since.IsZero() {
			since = s.Since.Format("2006-01-02 15:04:05")
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", s.Name, s.State, since)
	}
	if len(sessions) == 0 {
		fmt.Fprintf(table, "none: static routes for --cni %s\n", l.CNI)
	}
	fmt.Fprintln(table, "\nPOD\tNODE\tIPV6\tIPV4")
	for _, p := range demo.pods {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", p.name, p.node, text(p.addr(true)), text(p.addr(false)))
	}
	fmt.Fprintln(table)
	return table.Flush()
}
