package startup

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestCondition(t *testing.T) {
	then, now := metav1.NewTime(time.Unix(1000, 0)), metav1.NewTime(time.Unix(2000, 0))
	is := func(status corev1.ConditionStatus, reason, message string) []corev1.NodeCondition {
		return []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: corev1.ConditionTrue},
			{Type: corev1.NodeNetworkUnavailable, Status: status, Reason: reason, Message: message, LastTransitionTime: then},
		}
	}
	up := Condition(&corev1.Node{}, "", now)
	for _, c := range []struct {
		name    string
		is      []corev1.NodeCondition
		missing string
		want    corev1.ConditionStatus // "": nothing to write
		since   metav1.Time
	}{
		{"a new node waits", nil, "a is down", corev1.ConditionTrue, now},
		{"a new node", nil, "", corev1.ConditionFalse, now},
		{"it says so", is(corev1.ConditionTrue, ReasonStarting, "a is down"), "a is down", "", now},
		{"something else is missing", is(corev1.ConditionTrue, ReasonStarting, "a is down"), "b is down", corev1.ConditionTrue, then},
		{"nothing is missing any more", is(corev1.ConditionTrue, ReasonStarting, "a is down"), "", corev1.ConditionFalse, now},
		{"nothing is, and it says so", is(corev1.ConditionFalse, ReasonUp, up.Message), "", "", now},
		{"a reboot", is(corev1.ConditionFalse, ReasonUp, up.Message), "a is down", corev1.ConditionTrue, now},
		{"another network's word", is(corev1.ConditionFalse, "CalicoIsUp", ""), "", corev1.ConditionFalse, then},
		{"another network's word against it", is(corev1.ConditionTrue, "NoRouteCreated", ""), "", corev1.ConditionFalse, now},
	} {
		t.Run(c.name, func(t *testing.T) {
			node := &corev1.Node{Status: corev1.NodeStatus{Conditions: c.is}}
			got := Condition(node, c.missing, now)
			switch {
			case got == nil && c.want == "":
			case got == nil || c.want == "":
				t.Errorf("%+v, want %q", got, c.want)
			case got.Status != c.want || got.LastTransitionTime != c.since || got.LastHeartbeatTime != now || c.missing != "" && got.Message != c.missing:
				t.Errorf("%+v, want %s since %s", got, c.want, c.since)
			default: // what is written is not written again
				node.Status.Conditions = []corev1.NodeCondition{*got}
				if again := Condition(node, c.missing, now); again != nil || !SameStatus(node, c.want) {
					t.Errorf("written again: %+v", again)
				}
			}
		})
	}
}

func TestTaints(t *testing.T) {
	node := &corev1.Node{}
	for _, key := range []string{Taint, "a", Taint, Taint + "/x"} {
		node.Spec.Taints = append(node.Spec.Taints, corev1.Taint{Key: key})
	}
	if got := Taints(node); !slices.Equal(got, []int{2, 0}) {
		t.Errorf("%v", got)
	}
}
