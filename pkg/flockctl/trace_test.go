package flockctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"flock.fritzlab.net/flock/pkg/datapath/policy"
)

// TestGoldenPolicies are the answers about policies, and whether they mean that
// something is denied.
func TestGoldenPolicies(t *testing.T) {
	server := serve(t, slices.Concat(readFile(t, "testdata/cluster.yaml"), readFile(t, "testdata/policies.yaml")))
	for name, c := range map[string]struct {
		line   string
		denied bool
	}{
		"help-trace":       {"help trace", false},
		"help-policy":      {"policy --help", false},
		"trace-pods":       {"trace store/web-0 store/db-0 5432", false},
		"trace-families":   {"trace lab/probe store/db-1 sql", true}, // a rule of another tier, and a block of one family
		"trace-all-ports":  {"trace lab/probe store/web-0", true},
		"trace-ping":       {"trace store/web-0 lab/probe", false},
		"trace-service":    {"trace store/web-0 svc/store/db", false},
		"trace-spare":      {"trace lab/probe 2001:db8:ffff::10 54/TCP", true},
		"trace-from-svc":   {"trace svc/store/db lab/probe icmp", false},
		"trace-anycast":    {"trace store/web-0 2001:db8:53::53 53/UDP", false},
		"trace-far":        {"trace store/db-0 2001:db8:53::53 53/UDP", false},
		"trace-withdrawn":  {"trace store/db-0 2001:db8:53::9 53/UDP", false},
		"trace-outside":    {"trace 192.0.2.200 store/db-1 5433", true},
		"trace-to-outside": {"trace store/web-0 2001:db8:bad::1 443", true},
		"trace-to-node":    {"trace store/web-0 192.0.2.12 22", true},
		"trace-own-node":   {"trace store/web-0 192.0.2.11 22", false},
		"trace-node":       {"trace 192.0.2.11 store/batch 80", false},
		"trace-itself":     {"trace store/web-0 store/web-0 9000", false},
		"trace-address":    {"trace 10.244.1.80 10.244.1.51 5433", false},
		"trace-json":       {"trace store/batch store/db-1 22 -o json", false},
		"trace-agents":     {"trace store/web-0 store/db-1 5433 --agents", false},
		"trace-in-step":    {"trace lab/probe store/db-1 5433 --agents", true},
		"policy-agents":    {"policy store/db-1 --agents", false},
		"policy-no-agent":  {"policy store/db-0 --agents", false},
		"policy-db":        {"policy store/db-1", false},
		"policy-probe":     {"policy lab/probe", false},
		"policy-yaml":      {"policy store/web-0 -o yaml", false},
		"policy-hostnet":   {"policy kube-system/proxy", false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := executeAsking(server, c.line, agents(t))
			if errors.Is(err, errDenied) != c.denied || err != nil && !c.denied {
				t.Errorf("%v, want denied: %v", err, c.denied)
			}
			wantGolden(t, name+".txt", got)
		})
	}
}

func TestGoldenPolicyErrors(t *testing.T) {
	server := serve(t, slices.Concat(readFile(t, "testdata/cluster.yaml"), readFile(t, "testdata/policies.yaml")))
	var all strings.Builder
	for _, line := range []string{
		"trace a", "trace a b c d", "trace a/b/c/d x", "trace /x store/web-0", "trace store/web-0 store/db-0 0", "trace store/web-0 store/db-0 70000",
		"trace store/web-0 store/db-0 80/ICMP", "trace store/web-0 store/db-0 80/", "trace store/web-0 store/db-0 -o wide", "policy a/b/c",
		"trace store/web-0 store/none", "trace store/web-0 pod/store/db", "trace store/web-0 svc/store/none", "trace store/web-0 store/db-0 http",
		"trace store/web-0 svc/store/db 80", "trace store/web-0 svc/store/empty", "trace store/batch store/db-0 80", "trace 192.0.2.200 192.0.2.201", "policy none",
	} {
		out, err := execute(server, line)
		if err == nil || out != "" {
			t.Errorf("flockctl %s: %v, and printed %q; want an error and nothing else", line, err, out)
		}
		fmt.Fprintf(&all, "flockctl %s\n  %v\n", line, err)
	}
	wantGolden(t, "errors-policy.txt", all.String())
}

// agents answer as those of the nodes might. That of node1 knows what the API server has,
// but for the policy of the pod db-1, which it has not got yet.
func agents(t *testing.T) func(ctx context.Context, agent *corev1.Pod, path string) ([]byte, error) {
	return func(_ context.Context, agent *corev1.Pod, path string) ([]byte, error) {
		u, err := url.Parse(path)
		if err != nil || u.Path != "/policy" {
			t.Errorf("an agent is asked %s, %v", path, err)
		}
		if agent.Spec.NodeName != "node1" {
			return nil, errors.New("cannot ask the agent: it needs the right to get and create pods/exec in namespace flock-system")
		}
		r := policy.PodReport{InForce: true, Links: []string{"flock01020304"}, DeniedIn: 7}
		q := u.Query()
		deny := policy.PolicyRef{Namespace: "store", Name: "default-deny"}
		switch {
		case q.Get("pod") == "store/db-1" && q.Get("peer") == "":
			r.InForce, r.Why = false, "waiting for networkpolicies from the API server"
			r.Decisions = []policy.Decisions{{Series: policy.Series{Policy: deny, Direction: policy.Ingress, Verdict: "deny"}, Packets: 12}}
		case q.Get("pod") == "store/db-1" && strings.HasSuffix(q.Get("peer"), ":80"):
			r.Verdicts = []policy.Verdict{{Isolating: []policy.PolicyRef{deny}}}
		case q.Get("pod") == "store/db-1" && q.Get("peer") == "10.244.1.80":
			r.InForce, r.Why = false, "a change is about to be put into force"
		case q.Get("pod") == "store/db-1":
			r.Verdicts = []policy.Verdict{{By: []policy.RuleRef{{Policy: policy.PolicyRef{Name: "guard"}, Tier: "Admin", Rule: "spec.ingress[0]", Action: "Deny"}}}}
		default:
			r.Verdicts = []policy.Verdict{{Allowed: true}}
		}
		b, err := json.Marshal(r)
		return b, err
	}
}
