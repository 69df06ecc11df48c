package controller

import (
	"os"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// An agent is expected where the DaemonSets' controller runs a pod of one of flock's.
func TestExpectedAgents(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../deploy/chart/base/daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	daemonSet := func(change func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
		ds := &appsv1.DaemonSet{}
		if err := yaml.UnmarshalStrict(text, ds); err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(ds)
		}
		return ds
	}
	node := func(name string, taints ...corev1.Taint) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"flock.fritzlab.net/agent": "", "rack": "r1"}}}
		n.Spec.Taints = taints
		return n
	}
	taint := func(key string, effect corev1.TaintEffect) corev1.Taint {
		return corev1.Taint{Key: key, Effect: effect}
	}
	nodes := []*corev1.Node{
		node("b"), node("a"),
		{ObjectMeta: metav1.ObjectMeta{Name: "other"}}, // without the label
		node("gpu", taint("gpu", corev1.TaintEffectNoSchedule)),
		node("leaving", taint("leaving", corev1.TaintEffectNoExecute)),
		node("preferred", taint("gpu", corev1.TaintEffectPreferNoSchedule)),
		node("cordoned", taint(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)),
		node("dead", taint(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute), taint(corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule)),
		node("far"),
	}
	nodes[8].Labels["rack"] = "r2"
	all := "a b cordoned dead far gpu leaving preferred"
	intolerant := func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.Tolerations = nil }
	for _, c := range []struct {
		name string
		sets []*appsv1.DaemonSet
		want string
	}{
		{"no DaemonSet", nil, ""},
		{"as it is delivered", []*appsv1.DaemonSet{daemonSet(nil)}, all},
		{"two that select the same", []*appsv1.DaemonSet{daemonSet(nil), daemonSet(nil)}, all},
		{"without tolerations", []*appsv1.DaemonSet{daemonSet(intolerant)}, "a b cordoned dead far preferred"},
		{"without tolerations and the host's network", []*appsv1.DaemonSet{daemonSet(func(ds *appsv1.DaemonSet) {
			intolerant(ds)
			ds.Spec.Template.Spec.HostNetwork = false
		})}, "a b cordoned far preferred"},
		{"an affinity", []*appsv1.DaemonSet{daemonSet(func(ds *appsv1.DaemonSet) {
			ds.Spec.Template.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
				{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "rack", Operator: corev1.NodeSelectorOpIn, Values: []string{"r2"}}}},
			}}}}
		})}, "far"},
		{"an affinity that is not valid decides nothing", []*appsv1.DaemonSet{daemonSet(func(ds *appsv1.DaemonSet) {
			ds.Spec.Template.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
				{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "rack", Operator: "Like"}}},
			}}}}
		})}, ""},
		{"another selector", []*appsv1.DaemonSet{daemonSet(func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.NodeSelector = map[string]string{"rack": "r2"} })}, "far"},
		{"another program's", []*appsv1.DaemonSet{daemonSet(func(ds *appsv1.DaemonSet) { ds.Spec.Template.Labels[agentLabel] = "other" })}, ""},
		{"being deleted", []*appsv1.DaemonSet{daemonSet(func(ds *appsv1.DaemonSet) { ds.DeletionTimestamp = &metav1.Time{} })}, ""},
	} {
		if got := strings.Join(expectedAgents(slices.Clone(nodes), c.sets), " "); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
