package agent_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Nobody says that sessions are up while BIRD says nothing, or misses one that is
// switched off.
func TestSessionsUp(t *testing.T) {
	t.Parallel()
	with := func(torDisabled bool) string {
		return strings.Replace(nodeConfig, `"spec":{`, fmt.Sprintf(`"spec":{"bgp":{"localAS":64601,"routerID":"192.0.2.2","peers":[
			{"name":"tor","address":"192.0.2.1","remoteAS":64512,"disabled":%t},
			{"name":"spare","address":"192.0.2.9","remoteAS":64512,"disabled":true}]},`, torDisabled), 1)
	}
	n := newNode(t, with(false))
	api := n.serveAPI()
	api.put("a", 3, with(false))
	n.start()
	becomes := func(want metav1.ConditionStatus, reason, message string) {
		t.Helper()
		eventually(t, n.agentLog, func() error {
			got := api.status().Conditions
			c := meta.FindStatusCondition(got, "SessionsUp")
			if c == nil || c.Status != want || c.Reason != reason || !strings.HasPrefix(c.Message, message) || strings.Contains(c.Message, "spare") {
				return fmt.Errorf("conditions %+v, want SessionsUp=%s %s %q", got, want, reason, message)
			}
			return nil
		})
	}
	becomes(metav1.ConditionUnknown, "NotKnown", "BIRD does not report its sessions")
	if _, metrics := n.get("/metrics"); !strings.Contains(metrics, `flock_session_up{peer="tor",protocol="bgp"} 0`) {
		t.Errorf("a session has no metric while BIRD is away:\n%s", metrics)
	}
	n.startBIRD()
	becomes(metav1.ConditionFalse, "SomeDown", "bgp tor: ")
	api.put("a", 4, with(true))
	becomes(metav1.ConditionTrue, "AllUp", "")
}

// The start of an agent is no transition of a condition, and takes none away that it
// knows nothing of yet.
func TestConditionsOutliveTheAgent(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	api := n.serveAPI()
	api.put("a", 3, nodeConfig)
	before := metav1.Time{Time: time.Now().Add(-time.Hour).Truncate(time.Second)}
	was := []metav1.Condition{
		{Type: "Accepted", Status: metav1.ConditionTrue, Reason: "InForce", LastTransitionTime: before},
		{Type: "Ready", Status: metav1.ConditionTrue, Reason: "ServingPods", LastTransitionTime: before},
		{Type: "Templated", Status: metav1.ConditionTrue, Reason: "FromTemplate", LastTransitionTime: before},
	}
	api.mu.Lock()
	api.object.Status = v1alpha1.NodeConfigStatus{Conditions: was}
	api.mu.Unlock()
	n.start()
	api.accepted(n, 3, metav1.ConditionTrue, "")
	now := api.status().Conditions
	for _, c := range was {
		is := meta.FindStatusCondition(now, c.Type)
		if is == nil || is.Status != c.Status || !is.LastTransitionTime.Equal(&before) {
			t.Errorf("%s is %+v, was %+v", c.Type, is, c)
		}
	}
}
