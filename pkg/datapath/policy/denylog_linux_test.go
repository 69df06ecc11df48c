package policy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	policyv1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/policy"
	"flock.fritzlab.net/flock/pkg/datapath/policy/policytest"
)

// lines collects what is logged, a JSON object a line.
type lines struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

func (l *lines) parsed(t *testing.T) (out []map[string]string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.all.String()) {
		fields := map[string]string{}
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		delete(fields, "time")
		delete(fields, "level")
		out = append(out, fields)
	}
	return out
}

// A line says which connection was denied, of which pod, by which policies, once.
func TestDenyLog(t *testing.T) {
	l := newLab(t, 3, policytest.PodAddrs)
	policies, clusterPolicies := newSource(), newSource()
	policies.Add(ingressPolicy("deny", "server", ""))
	cnp := clusterPolicy(egressRule{Action: "Deny", To: []policyv1beta1.ClusterNetworkPolicyEgressPeer{{Networks: []policyv1beta1.CIDR{"192.0.2.0/24"}}}})
	cnp.Spec.Subject.Namespaces = nil
	cnp.Spec.Subject.Pods = &policyv1beta1.NamespacedPod{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}}}
	clusterPolicies.Add(cnp)
	namespaces := newSource()
	namespaces.Add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	e := policy.New(policy.Config{
		Table: openTable(t, l.node), Log: slog.New(slog.DiscardHandler),
		Sources: policy.Sources{NetworkPolicies: policies, ClusterNetworkPolicies: clusterPolicies, Namespaces: namespaces},
	})
	var log *policy.DenyLog
	var out lines
	l.node.Run(func() {
		var err error
		if log, err = policy.OpenDenyLog(e, slog.New(slog.NewJSONHandler(&out, nil))); err != nil {
			t.Fatal(err)
		}
	})
	defer log.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { e.Run(ctx); done <- nil }()
	go func() { done <- log.Run(ctx) }()
	defer func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}()
	for slot, app := range []string{"client", "server"} {
		e.Set(policy.Pod{Namespace: "shop", Name: app, UID: app, Labels: map[string]string{"app": app}, Addrs: policytest.PodAddrs(slot), Links: []string{slotLink(slot)}})
	}
	e.SetComplete()
	e.SetLogged("shop")
	if err := e.InForce(ctx); err != nil {
		t.Fatal(err)
	}
	client, server := policytest.PodAddrs(0), policytest.PodAddrs(1)
	send := func(port int, s segment) {
		t.Helper()
		tag := l.send(port, s)
		if at, came := l.settled()[tag]; came {
			t.Fatalf("%+v came to port %d", s, at)
		}
	}
	for range 3 { // one connection
		send(firstSlot, segment{src: client[1], dst: server[1], proto: unix.IPPROTO_TCP, sport: 4000, dport: 80, flags: syn})
	}
	send(firstSlot, segment{src: client[0], dst: server[0], proto: unix.IPPROTO_ICMP, sport: 1})
	send(firstSlot, segment{src: client[0], dst: waypointA, proto: unix.IPPROTO_UDP, sport: 5000, dport: 53, fragments: true})
	send(uplink, segment{src: waypointA, dst: server[0], proto: unix.IPPROTO_UDP, sport: 6000, dport: 53})
	const deny, rules = "NetworkPolicy shop/deny", "ClusterNetworkPolicy rules"
	isolated := "denied because no rule of the policies that select the pod allows it: " + deny
	want := []map[string]string{
		{"pod": "shop/server", "direction": "ingress", "peer": "shop/client", "source": fmt.Sprintf("[%s]:4000", client[1]), "destination": fmt.Sprintf("[%s]:80", server[1]), "protocol": "TCP", "policies": deny, "reason": isolated},
		{"pod": "shop/server", "direction": "ingress", "peer": "shop/client", "source": client[0].String(), "destination": server[0].String(), "protocol": "ICMP", "policies": deny, "reason": isolated},
		{"pod": "shop/client", "direction": "egress", "peer": waypointA.String(), "source": client[0].String() + ":5000", "destination": waypointA.String() + ":53", "protocol": "UDP", "policies": rules, "reason": "denied by " + rules + " spec.egress[0]"},
		{"pod": "shop/server", "direction": "ingress", "peer": waypointA.String(), "source": waypointA.String() + ":6000", "destination": server[0].String() + ":53", "protocol": "UDP", "policies": deny, "reason": isolated},
	}
	var got []map[string]string
	nettest.Await(t, "the lines", func() bool { got = out.parsed(t); return len(got) >= len(want) })
	for i, w := range want {
		w["msg"] = "network policy denied a connection"
		if i < len(got) && fmt.Sprint(got[i]) != fmt.Sprint(w) {
			t.Errorf("line %d is\n%v, want\n%v", i, got[i], w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d lines, want %d: %v", len(got), len(want), got)
	}

	// What the node says of the pod is the same.
	report, err := e.About(ctx, "shop", "server", policy.Question{Direction: policy.Ingress, Peer: client[1], Protocol: unix.IPPROTO_TCP, Port: 80})
	if err != nil || !report.InForce || report.DeniedIn != 5 || report.DeniedOut != 0 || len(report.Verdicts) != 1 || report.Verdicts[0].Reason() != isolated {
		t.Errorf("report %+v, %v", report, err)
	}
	if len(report.Decisions) != 1 || report.Decisions[0].Verdict != "deny" || report.Decisions[0].Packets != 5 {
		t.Errorf("decisions %+v, want 5 denied packets", report.Decisions)
	}
	if report, err = e.About(ctx, "shop", "nobody"); err != nil || !report.InForce || report.Links != nil {
		t.Errorf("report of no pod: %+v, %v", report, err)
	}
}
