//go:build apiserver

package kube

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/kube/kubetest"
)

// TestThousandNodes is what a fleet of 1,000 agents costs an API server when a template
// makes, and then changes, all of their NodeConfigs at once. For its figures; make test-cluster leaves it out.
func TestThousandNodes(t *testing.T) {
	s := &server{kubetest.Start(t, "../../deploy")}
	agents, configs := make([]*Client, 1000), make([]*v1alpha1.NodeConfig, 1000)
	for i := range agents {
		var err error
		name := fmt.Sprint("node", i)
		if agents[i], err = NewClient(s.Agent(name)); err != nil {
			t.Fatal(err)
		}
		nc := &v1alpha1.NodeConfig{}
		nc.Name = name
		nc.Labels = map[string]string{v1alpha1.TemplateLabel: "all"}
		nc.Spec.PodCIDRs.IPv6 = []v1alpha1.CIDR{v1alpha1.CIDR(fmt.Sprintf("2001:db8:100:%x::/64", i+1))}
		nc.Spec.BGP = &v1alpha1.BGP{LocalAS: 64601, RouterID: "192.0.2.1"}
		nc.Spec.BGP.Peers = []v1alpha1.BGPPeer{{Name: "a", Address: "2001:db8::1", RemoteAS: 64512}, {Name: "b", Address: "2001:db8::2", RemoteAS: 64512}}
		configs[i] = nc
	}
	each := func(what string, do func(i int) error) {
		t.Helper()
		began := time.Now()
		var all sync.WaitGroup
		for i := range agents {
			all.Go(func() {
				if err := do(i); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		t.Logf("%s: %s", what, time.Since(began).Round(100*time.Millisecond))
	}
	each("created", func(i int) error { return agents[i].CreateNodeConfig(t.Context(), configs[i]) })
	each("read", func(i int) error {
		return agents[i].flock.Get().Resource(nodeConfigs).Name(configs[i].Name).Do(t.Context()).Into(configs[i])
	})
	each("updated", func(i int) error {
		configs[i].Spec.MTU = 9000
		return agents[i].UpdateNodeConfig(t.Context(), configs[i])
	})
}
