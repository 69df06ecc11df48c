package agent

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/routing"
	"flock.fritzlab.net/flock/pkg/routing/bird"
)

// TestSessionsOfASilentBIRD: nobody says that sessions are up of which BIRD does not answer.
func TestSessionsOfASilentBIRD(t *testing.T) {
	var state cell.Cell[nodeState]
	state.Set(nodeState{inForce: &inForce{node: config.Node{BGP: &config.BGP{Peers: []config.BGPPeer{{Name: "tor"}}}}}})
	r := &router{state: &state}
	up := []routing.Session{{Name: "tor", Protocol: "bgp", Up: true}}
	if c := r.sessionsUp(bird.State{Sessions: up}); c.Status != metav1.ConditionTrue {
		t.Errorf("%+v", c)
	}
	if c := r.sessionsUp(bird.State{Sessions: up, Silent: true}); c.Status != metav1.ConditionUnknown || !strings.Contains(c.Message, "does not answer") {
		t.Errorf("%+v", c)
	}
}
