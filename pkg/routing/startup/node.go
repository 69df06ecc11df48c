package startup

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Taint is the key of the taint with which operators let nodes register, so that not
// even the pods of a node's first seconds are given to it. The agent takes it away,
// and never puts it there.
const Taint = "flock.fritzlab.net/starting"

// The reasons of the Node's condition NetworkUnavailable.
const (
	// ReasonStarting goes with True: see the message for what is missing.
	ReasonStarting = "FlockIsStarting"
	// ReasonUp goes with False.
	ReasonUp = "FlockIsUp"
)

// Condition is what the Node's condition NetworkUnavailable is to say, of what is
// missing; nil if the Node says so already. The node lifecycle controller turns True
// into the taint node.kubernetes.io/network-unavailable:NoSchedule.
func Condition(node *corev1.Node, missing string, now metav1.Time) *corev1.NodeCondition {
	want := corev1.NodeCondition{
		Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse,
		Reason: ReasonUp, Message: "flock serves pods",
		LastHeartbeatTime: now, LastTransitionTime: now,
	}
	if missing != "" {
		want.Status, want.Reason, want.Message = corev1.ConditionTrue, ReasonStarting, missing
	}
	for _, is := range node.Status.Conditions {
		if is.Type != want.Type {
			continue
		}
		if is.Status == want.Status && is.Reason == want.Reason && is.Message == want.Message {
			return nil
		}
		if is.Status == want.Status {
			want.LastTransitionTime = is.LastTransitionTime
		}
	}
	return &want
}

// SameStatus reports whether the Node's condition NetworkUnavailable has that status.
func SameStatus(node *corev1.Node, status corev1.ConditionStatus) bool {
	for _, is := range node.Status.Conditions {
		if is.Type == corev1.NodeNetworkUnavailable {
			return is.Status == status
		}
	}
	return false
}

// Taints are the indexes in node.Spec.Taints of those that are to go, the last
// first, when nothing is missing any more.
func Taints(node *corev1.Node) (at []int) {
	for i := len(node.Spec.Taints) - 1; i >= 0; i-- {
		if node.Spec.Taints[i].Key == Taint {
			at = append(at, i)
		}
	}
	return at
}
