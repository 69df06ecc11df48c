package departure

import (
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	now := &metav1.Time{Time: time.Unix(1, 0)}
	node := func(change func(*corev1.Node)) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1", Labels: map[string]string{"flock.fritzlab.net/agent": "", "other": "x"}}}
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		if change != nil {
			change(n)
		}
		return n
	}
	daemonSet := func(change func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
		ds := &appsv1.DaemonSet{}
		ds.Spec.Template.Spec.NodeSelector = map[string]string{"flock.fritzlab.net/agent": ""}
		ds.Status.DesiredNumberScheduled, ds.Status.UpdatedNumberScheduled = 3, 3
		if change != nil {
			change(ds)
		}
		return ds
	}
	cordoned := func(n *corev1.Node) { n.Spec.Unschedulable = true }
	notReady := func(message string) func(*corev1.Node) {
		return func(n *corev1.Node) {
			n.Status.Conditions[0] = corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Reason: "KubeletNotReady", Message: message}
		}
	}
	drained := &v1alpha1.NodeConfig{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.DrainAnnotation: "now"}}}
	const stays, leaves, withdraws = "stays", "leaves", "withdraws"
	for _, c := range []struct {
		name  string
		facts Facts
		want  string
		why   string
	}{
		{"a node in use", Facts{Node: node(nil), DaemonSet: daemonSet(nil), NodeConfig: &v1alpha1.NodeConfig{}}, stays, ""},
		{"nothing known of the DaemonSet", Facts{Node: node(func(n *corev1.Node) { n.Labels = nil })}, stays, ""},
		{"a roll-out", Facts{Node: node(nil), DaemonSet: daemonSet(func(d *appsv1.DaemonSet) { d.Status.UpdatedNumberScheduled = 1 })}, stays, ""},
		{"a roll-out on a cordoned node", Facts{Node: node(cordoned), DaemonSet: daemonSet(func(d *appsv1.DaemonSet) { d.Status.UpdatedNumberScheduled = 1 })}, stays, ""},
		{"a roll-out that has just begun", Facts{Node: node(cordoned), DaemonSet: daemonSet(func(d *appsv1.DaemonSet) { d.Generation = 2 })}, stays, ""},
		{"not ready", Facts{Node: node(notReady("container runtime is down")), DaemonSet: daemonSet(nil)}, stays, ""},
		{"cordoned", Facts{Node: node(cordoned), DaemonSet: daemonSet(nil)}, leaves, "Node node1 is cordoned"},
		{"cordoned, nothing known of the DaemonSet", Facts{Node: node(cordoned)}, leaves, "cordoned"},
		{"Node gone", Facts{DaemonSet: daemonSet(nil)}, leaves, "has been deleted"},
		{"Node being deleted", Facts{Node: node(func(n *corev1.Node) { n.DeletionTimestamp = now })}, withdraws, "is being deleted"},
		{"label gone", Facts{Node: node(func(n *corev1.Node) { delete(n.Labels, "flock.fritzlab.net/agent") }), DaemonSet: daemonSet(nil)}, withdraws, "flock.fritzlab.net/agent="},
		{"shutdown", Facts{Node: node(notReady("node is shutting down")), DaemonSet: daemonSet(nil)}, withdraws, "is shutting down"},
		{"flockctl drain", Facts{Node: node(nil), NodeConfig: drained}, withdraws, "flockctl drain node1 --undo"},
		{"flockctl drain in a roll-out", Facts{Node: node(nil), NodeConfig: drained, DaemonSet: daemonSet(func(d *appsv1.DaemonSet) { d.Generation = 2 })}, withdraws, "flockctl"},
		{"DaemonSet being deleted", Facts{Node: node(nil), DaemonSet: daemonSet(func(d *appsv1.DaemonSet) { d.DeletionTimestamp = now })}, withdraws, "DaemonSet has been deleted"},
		{"DaemonSet gone", Facts{Node: node(nil), DaemonSetDeleted: true}, withdraws, "DaemonSet has been deleted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.facts.NodeName = "node1"
			d := Decide(c.facts)
			got := map[Decision]string{{}: stays, {Leave: true}: leaves, {Leave: true, Withdraw: true}: withdraws}[Decision{Leave: d.Leave, Withdraw: d.Withdraw}]
			if got != c.want || !strings.Contains(d.Reason, c.why) || (d.Reason == "") != (c.want == stays) {
				t.Errorf("%q (%+v), want %q because of %q", got, d, c.want, c.why)
			}
		})
	}
}
