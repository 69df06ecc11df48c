package flockctl

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"flock.fritzlab.net/flock/pkg/view"
)

// TestPodKernel: with --agents a pod is checked against the kernel of its node, by the
// agent of that node.
func TestPodKernel(t *testing.T) {
	server := serve(t, readFile(t, "testdata/cluster.yaml"))
	good := view.Pod{
		Namespace: "dns", Name: "resolver-1", State: "committed", Container: "0123456789abcdef", Link: "flock1234abcd", MTU: 1500,
		Addresses: []view.Address{
			{Address: "2001:db8:100:1:cab2:2f18:8ea8:7620", Kind: "own", From: "2001:db8:100:1::/64", Route: "dev flock1234abcd", Reaches: true},
			{Address: "2001:db8:53::53", Kind: "anycast", From: "dns", Route: "dev flock1234abcd", Reaches: true, Announced: true},
			{Address: "203.0.113.53", Kind: "anycast", From: "dns", Route: "dev flock1234abcd", Reaches: true, Why: "NotReady"},
		},
		Denied: 3, Policies: []string{"deny NetworkPolicy dns/only ingress: 3 packets of all pods here"},
	}
	bad := good
	bad.Addresses = append([]view.Address{{Address: "10.244.1.7", Kind: "own", Route: "blackhole"}}, good.Addresses...)
	bad.Problems = []string{"packets for 10.244.1.7 do not reach the pod, the kernel's answer is blackhole: ip route get 10.244.1.7"}
	for _, c := range []struct {
		name   string
		answer []view.Pod
		err    error
		want   string // of the error; empty: none
	}{
		{"kernel", []view.Pod{good}, nil, ""},
		{"kernel-wrong", []view.Pod{bad}, nil, "1 problem(s) in the kernel of node node1"},
		{"kernel-other-plugin", []view.Pod{}, nil, "the agent of node node1 does not know the pod"},
		{"kernel-forbidden", nil, errors.New("it needs the right to get and create pods/exec in namespace flock-system"), "is not known"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := executeAsking(server, "pod dns/resolver-1 --agents", func(_ context.Context, agent *corev1.Pod, path string) ([]byte, error) {
				if agent.Name != "flock-a" || path != "/pod?pod=dns%2Fresolver-1" {
					t.Errorf("agent %s is asked %s", agent.Name, path)
				}
				if c.err != nil {
					return nil, c.err
				}
				return json.Marshal(c.answer)
			})
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
			wantGolden(t, "pod-"+c.name+".txt", got)
		})
	}
}
