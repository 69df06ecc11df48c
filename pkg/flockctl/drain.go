package flockctl

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

var drainCommand = command{
	name: "drain", args: "NODE",
	short: "Withdraw a node's anycast addresses ahead of its shutdown, or announce them again",
	long: `The node withdraws its anycast addresses and those of Services, and asks routers to
prefer other paths to the rest (RFC 8326). Its sessions stay up and its pods keep
running. When flock's pod or the node then ends, the sessions end with a Cease, so that
no router keeps routes to it. flockctl names the addresses that no other node announces,
and waits until the node has done it. It lasts, also over a reboot, until --undo.

It is for work on a node; kubectl drain, which comes next, deletes the pods.`,
	examples: `flockctl drain node1
flockctl drain node1 --undo`,
	flags: []string{"undo"}, min: 1, max: 1,
	run: runDrain,
}

// drainWithin is how long a node may take; a variable for the tests.
var drainWithin = 30 * time.Second

func runDrain(ctx context.Context, s *session, args []string) error {
	c, err := s.connect()
	if err != nil {
		return err
	}
	name := args[0]
	nc, err := c.nodeConfig(ctx, name)
	if err != nil {
		return err
	}
	if !s.undo {
		all, err := c.nodeConfigs(ctx)
		if err != nil {
			return err
		}
		only, remarks := announcedOnlyBy(name, all)
		if len(only) > 0 {
			fmt.Fprintf(s.remarks, "no other node announces %s: clients get no answer there until one does\n", strings.Join(only, ", "))
		}
		for _, r := range remarks {
			fmt.Fprintln(s.remarks, r)
		}
	}
	var value any // null removes an annotation
	if !s.undo {
		value = s.now.UTC().Format(time.RFC3339)
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{v1alpha1.DrainAnnotation: value}}})
	if err != nil {
		return err
	}
	if err := c.explain(c.flock.Patch(types.MergePatchType).Resource("nodeconfigs").Name(name).Body(patch).Do(ctx).Error(), "patch", "nodeconfigs"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, drainWithin)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for !drained(nc) == !s.undo { // the other way around
		select {
		case <-ctx.Done():
			return fmt.Errorf("NodeConfig %s is annotated, but its agent has not acted within %s: see flockctl node %s", name, drainWithin, name)
		case <-tick.C:
		}
		if now, err := c.nodeConfig(ctx, name); err == nil {
			nc = now
		}
	}
	if s.undo {
		// It may be cordoned, or in another way leaving.
		fmt.Fprintf(s.out, "%s announces its anycast addresses again\n", name)
		return nil
	}
	fmt.Fprintf(s.out, "%s has withdrawn its anycast addresses and those of Services, and routers are asked to prefer other paths to its pods\n", name)
	return nil
}

func drained(nc *v1alpha1.NodeConfig) bool {
	c := meta.FindStatusCondition(nc.Status.Conditions, "Announcing")
	return c != nil && c.Status == metav1.ConditionFalse
}

// silent says whether flock-controller has turned a condition to Unknown because nothing is
// heard of the node. It leaves the rest of the status as the agent wrote it last.
func silent(nc *v1alpha1.NodeConfig) bool {
	return slices.ContainsFunc(nc.Status.Conditions, func(c metav1.Condition) bool {
		return (c.Type == "Ready" || c.Type == "Announcing") && c.Status == metav1.ConditionUnknown && c.Reason == v1alpha1.ReasonNodeUnknown
	})
}

// announcedOnlyBy are the addresses, of pods and of Services, that the node announces and no
// other of which something is heard does. The status of a node holds a limited number, and that
// of a silent one what was: remarks says what may be missing.
func announcedOnlyBy(node string, all []v1alpha1.NodeConfig) (only, remarks []string) {
	type announced struct{ address, by string }
	var here []announced
	elsewhere := map[string]bool{}
	before := map[string][]string{} // the silent nodes that announced an address
	for _, nc := range all {
		mine := nc.Name == node
		dead := !mine && silent(&nc)
		note := func(address, by string) {
			switch {
			case mine:
				here = append(here, announced{address, by})
			case dead:
				before[address] = append(before[address], nc.Name)
			default:
				elsewhere[address] = true
			}
		}
		for _, a := range nc.Status.Anycast {
			if a.Announced {
				note(a.Address, "")
			}
		}
		for _, s := range nc.Status.Services {
			if s.Announced {
				note(s.Address, " of Service "+s.Service)
			}
		}
		for what, full := range map[string]bool{
			fmt.Sprintf("%d anycast addresses", mostPaths):        len(nc.Status.Anycast) >= mostPaths,
			fmt.Sprintf("%d addresses of Services", mostServices): len(nc.Status.Services) >= mostServices,
		} {
			switch {
			case full && mine:
				remarks = append(remarks, fmt.Sprintf("the status of %s has its limit of %s: it may announce more, of which nothing is said here", node, what))
			case full && !dead:
				remarks = append(remarks, fmt.Sprintf("the status of %s has its limit of %s: it may announce some of those above", nc.Name, what))
			}
		}
	}
	here = slices.DeleteFunc(here, func(a announced) bool { return elsewhere[a.address] })
	slices.SortFunc(here, func(a, b announced) int {
		return cmp.Or(byAddress(a.address, b.address), strings.Compare(a.by, b.by))
	})
	var lost []string
	for _, a := range slices.Compact(here) {
		only = append(only, a.address+a.by)
		lost = append(lost, before[a.address]...)
	}
	slices.Sort(lost)
	for _, name := range slices.Compact(lost) {
		remarks = append(remarks, fmt.Sprintf("nothing is heard of %s: its status says that it announces some of those above, which does not count", name))
	}
	slices.Sort(remarks)
	return only, remarks
}
