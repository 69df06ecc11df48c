package flockctl

import (
	"context"
	"encoding/json"
	"fmt"
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
	long: `The node withdraws its anycast addresses and asks routers to prefer other paths to the
rest (RFC 8326). Its sessions stay up and its pods keep running. When flock's pod or the
node then ends, the sessions end with a Cease, so that no router keeps routes to it.
flockctl waits until the node has done it. It lasts, also over a reboot, until --undo.

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
		if only := announcedOnlyBy(name, all); len(only) > 0 {
			fmt.Fprintf(s.remarks, "no other node announces %s: clients get no answer there until one does\n", strings.Join(only, ", "))
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
	fmt.Fprintf(s.out, "%s has withdrawn its anycast addresses, and routers are asked to prefer other paths to its pods\n", name)
	return nil
}

func drained(nc *v1alpha1.NodeConfig) bool {
	c := meta.FindStatusCondition(nc.Status.Conditions, "Announcing")
	return c != nil && c.Status == metav1.ConditionFalse
}

// announcedOnlyBy are the anycast addresses that the node announces and no other does.
func announcedOnlyBy(node string, all []v1alpha1.NodeConfig) (only []string) {
	elsewhere := map[string]bool{}
	paths := pathsOf(all)
	for _, p := range paths {
		elsewhere[p.Address] = elsewhere[p.Address] || p.Announced && p.Node != node
	}
	for _, p := range paths {
		if p.Announced && p.Node == node && !elsewhere[p.Address] && (len(only) == 0 || only[len(only)-1] != p.Address) {
			only = append(only, p.Address)
		}
	}
	return only
}
