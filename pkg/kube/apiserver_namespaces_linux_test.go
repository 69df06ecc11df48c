//go:build apiserver

package kube

import (
	"context"
	"strings"
	"testing"
	"time"
)

// namespacesOnDemand: an agent follows the namespaces that its pods need, and no others.
func namespacesOnDemand(t *testing.T, s *server) {
	for _, name := range []string{"tenant-a", "tenant-b"} {
		s.Kubectl("", "create", "namespace", name)
		s.Kubectl("", "label", "namespace", name, "team="+name)
	}
	changes := make(chan struct{}, 1000)
	n := s.claims(t, "node1").Namespaces(func() { changes <- struct{}{} })
	if _, err := n.Labels(t.Context(), "tenant-a"); err == nil {
		t.Error("there are labels before it runs")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); n.Run(ctx) }()
	eventually := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			labels, err := n.Labels(t.Context(), "tenant-a")
			if err == nil && labels["team"] == want && labels["kubernetes.io/metadata.name"] == "tenant-a" {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("labels %v, %v, want team=%s", labels, err, want)
			}
		}
	}
	eventually("tenant-a")
	s.Kubectl("", "label", "--overwrite", "namespace", "tenant-a", "team=other")
	eventually("other")
	if _, err := n.Labels(t.Context(), "tenant-c"); err == nil || !strings.Contains(err.Error(), "has no namespace tenant-c") {
		t.Errorf("a namespace that is not there: %v", err)
	}
	followed := func() (names []string) {
		n.mu.Lock()
		defer n.mu.Unlock()
		for name := range n.followed {
			names = append(names, name)
		}
		return names
	}
	if got := followed(); len(got) != 2 {
		t.Errorf("followed are %v, want the two that were asked for", got)
	}
	n.forget(time.Now())
	if got := followed(); len(got) != 0 {
		t.Errorf("followed are %v after all were forgotten", got)
	}
	eventually("other")
	for known := false; !known; {
		var labels map[string]string
		if labels, known = n.Known("tenant-b"); known && labels["team"] != "tenant-b" {
			t.Errorf("known are %v", labels)
		} else if !known {
			select {
			case <-changes: // perhaps of another
			case <-time.After(30 * time.Second):
				t.Fatal("no change is reported for what was not known")
			}
		}
	}
	n.forget(time.Now().Add(time.Hour))
	if got := followed(); len(got) != 1 || got[0] != "tenant-b" {
		t.Errorf("followed are %v, want what Known was asked for", got)
	}
	cancel()
	<-done
}
