//go:build apiserver

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// ownNode: what an agent does with its Node, and all that it may not do.
func ownNode(t *testing.T, s *server) {
	const starting = "flock.fritzlab.net/starting"
	admin := s.Core(s.Admin())
	made := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "node1", Labels: map[string]string{"rack": "a"}, Annotations: map[string]string{"who": "kubelet"}},
		Spec: corev1.NodeSpec{ProviderID: "x://1", Taints: []corev1.Taint{
			{Key: "dedicated", Value: "gpu", Effect: corev1.TaintEffectNoSchedule},
			{Key: starting, Effect: corev1.TaintEffectNoSchedule},
			{Key: starting, Effect: corev1.TaintEffectNoExecute},
		}},
	}
	for _, name := range []string{"node1", "node2"} { // to which the API server adds that they are not ready
		made.Name = name
		if err := admin.Post().Resource(nodes).Body(made).Do(t.Context()).Error(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = admin.Delete().Resource(nodes).Name(name).Do(context.Background()).Error() })
	}
	kubelet := `{"status":{"images":[{"names":["a"]}],"nodeInfo":{"kernelVersion":"6"},"conditions":[{"type":"Ready","status":"True","reason":"KubeletReady"}]}}`
	if err := admin.Patch(types.StrategicMergePatchType).Resource(nodes).Name("node1").SubResource("status").Body([]byte(kubelet)).Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
	get := func() *corev1.Node {
		t.Helper()
		n := &corev1.Node{}
		if err := admin.Get().Resource(nodes).Name("node1").Do(t.Context()).Into(n); err != nil {
			t.Fatal(err)
		}
		return n
	}

	agent, err := NewClient(s.Agent("node1"))
	if err != nil {
		t.Fatal(err)
	}
	// What tells a roll-out from the node's departure.
	if ds, err := agent.GetDaemonSet(t.Context(), "flock-system", "flock"); err != nil || ds.Spec.Template.Spec.NodeSelector == nil {
		t.Errorf("flock's DaemonSet: %v, %v", ds, err)
	}
	if _, err := agent.GetDaemonSet(t.Context(), "kube-system", "other"); !apierrors.IsForbidden(err) {
		t.Errorf("a DaemonSet of another namespace: %v, want it forbidden", err)
	}
	if n, err := agent.GetNode(t.Context(), "node1"); err != nil || n.Name != "node1" {
		t.Errorf("%v, %v", n, err)
	}
	changed := make(chan struct{}, 1)
	cache := agent.Node("node1", func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); cache.Run(ctx) }()
	defer func() { cancel(); <-done }()
	seen := func(want func(*corev1.Node) bool) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			if n, ok := cache.Get("node1"); ok && want(n) {
				return
			}
			select {
			case <-changed:
			case <-deadline:
				n, _ := cache.Get("node1")
				t.Fatalf("the agent sees %+v", n)
			}
		}
	}
	seen(func(n *corev1.Node) bool {
		return len(n.Spec.Taints) == 4 && len(n.Status.Conditions) == 1 && n.Status.NodeInfo.KernelVersion == "6" && n.Status.Images == nil && n.Annotations == nil
	})

	condition := corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue, Reason: "FlockIsStarting", Message: "BGP peer tor is down", LastTransitionTime: metav1.Now(), LastHeartbeatTime: metav1.Now()}
	for range 2 { // also when it is there
		if err := agent.SetNodeCondition(t.Context(), "node1", condition); err != nil {
			t.Fatal(err)
		}
		condition.Status = corev1.ConditionFalse
	}
	seen(func(n *corev1.Node) bool {
		return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeNetworkUnavailable && c.Status == corev1.ConditionFalse
		})
	})
	if c := get().Status.Conditions; len(c) != 2 {
		t.Errorf("conditions %+v, want the kubelet's and flock's", c)
	}

	// A list that has changed meanwhile is another.
	if err := agent.RemoveNodeTaints(t.Context(), "node1", starting, []int{1, 0}); !apierrors.IsInvalid(err) {
		t.Errorf("taints at indexes of others: %v", err)
	}
	if n := get(); len(n.Spec.Taints) != 4 {
		t.Errorf("half of a change was made: %+v", n.Spec.Taints)
	}
	if err := agent.RemoveNodeTaints(t.Context(), "node1", starting, []int{2, 1}); err != nil {
		t.Fatal(err)
	}
	if n := get(); len(n.Spec.Taints) != 2 || n.Spec.Taints[0].Key != "dedicated" || n.Spec.Taints[1].Key != corev1.TaintNodeNotReady {
		t.Errorf("taints %+v", n.Spec.Taints)
	}

	const onlyThat = "may change nothing of Node"
	for _, c := range []struct {
		name, node, sub string
		patch           any
		refusal         string
	}{
		{"another's condition", "node2", "status", statusPatch("NetworkUnavailable"), `the agent on node "node1" may change its own Node only, not "node2"`},
		{"another's taint", "node2", "", []any{map[string]string{"op": "remove", "path": "/spec/taints/1"}}, `may change its own Node only`},
		{"condition Ready", "node1", "status", statusPatch("Ready"), onlyThat},
		{"a condition of its own making", "node1", "status", statusPatch("Mine"), onlyThat},
		{"all conditions", "node1", "status", []any{map[string]any{"op": "replace", "path": "/status/conditions", "value": []any{}}}, onlyThat},
		{"images", "node1", "status", map[string]any{"status": map[string]any{"images": []any{}}}, onlyThat},
		{"capacity", "node1", "status", map[string]any{"status": map[string]any{"capacity": map[string]string{"cpu": "1k"}}}, onlyThat},
		{"nodeInfo", "node1", "status", map[string]any{"status": map[string]any{"nodeInfo": map[string]string{"kernelVersion": "7"}}}, onlyThat},
		{"addresses", "node1", "status", map[string]any{"status": map[string]any{"addresses": []any{map[string]string{"type": "InternalIP", "address": "192.0.2.66"}}}}, onlyThat},
		{"labels by way of the status", "node1", "status", map[string]any{"metadata": map[string]any{"labels": map[string]string{"rack": "b"}}}, onlyThat},
		{"a label", "node1", "", map[string]any{"metadata": map[string]any{"labels": map[string]string{"node-role.kubernetes.io/control-plane": ""}}}, onlyThat},
		{"a label less", "node1", "", map[string]any{"metadata": map[string]any{"labels": nil}}, onlyThat},
		{"an annotation", "node1", "", map[string]any{"metadata": map[string]any{"annotations": map[string]string{"who": "me"}}}, onlyThat},
		{"a finalizer", "node1", "", map[string]any{"metadata": map[string]any{"finalizers": []string{"flock.fritzlab.net/mine"}}}, onlyThat},
		{"cordon", "node1", "", map[string]any{"spec": map[string]any{"unschedulable": true}}, onlyThat},
		{"pod CIDR", "node1", "", map[string]any{"spec": map[string]any{"podCIDR": "10.9.0.0/24", "podCIDRs": []string{"10.9.0.0/24"}}}, onlyThat},
		{"another taint", "node1", "", []any{map[string]string{"op": "remove", "path": "/spec/taints/0"}}, onlyThat},
		{"a taint more", "node1", "", []any{map[string]any{"op": "add", "path": "/spec/taints/-", "value": map[string]string{"key": starting, "effect": "NoExecute"}}}, onlyThat},
		{"a taint's effect", "node1", "", []any{map[string]any{"op": "replace", "path": "/spec/taints/0/effect", "value": "PreferNoSchedule"}}, onlyThat},
	} {
		t.Run(c.name, func(t *testing.T) {
			body, err := json.Marshal(c.patch)
			if err != nil {
				t.Fatal(err)
			}
			kind := types.StrategicMergePatchType
			if _, list := c.patch.([]any); list {
				kind = types.JSONPatchType
			}
			before := get()
			patch := agent.core.Patch(kind).Resource(nodes).Name(c.node).Body(body)
			if c.sub != "" {
				patch = patch.SubResource(c.sub)
			}
			err = patch.Do(t.Context()).Error()
			if !apierrors.IsForbidden(err) || !strings.Contains(fmt.Sprint(err), c.refusal) {
				t.Errorf("answer %v: want %q", err, c.refusal)
			}
			if after := get(); after.ResourceVersion != before.ResourceVersion {
				t.Errorf("Node is %+v, was %+v", after, before)
			}
			// The same is no agent's to refuse to others.
			patch = admin.Patch(kind).Resource(nodes).Name(c.node).Body(body).Param("dryRun", "All")
			if c.sub != "" {
				patch = patch.SubResource(c.sub)
			}
			if err := patch.Do(t.Context()).Error(); err != nil {
				t.Errorf("by the administrator: %v", err)
			}
		})
	}
	if err := agent.core.Delete().Resource(nodes).Name("node1").Do(t.Context()).Error(); !apierrors.IsForbidden(err) {
		t.Errorf("delete: %v", err)
	}
}

func statusPatch(condition string) any {
	return map[string]any{"status": map[string]any{"conditions": []any{map[string]string{"type": condition, "status": "False", "reason": "Test"}}}}
}
