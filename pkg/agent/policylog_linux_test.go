package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/datapath/policy"
)

// askSocket asks the agent at its socket.
func (n *node) askSocket(path string) (int, string, error) {
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(n.state, "health.sock"))
	}}}
	defer client.CloseIdleConnections()
	answer, err := client.Get("http://agent" + path)
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return answer.StatusCode, string(body), err
}

// Why packets are denied: the agent logs it for a namespace that wants it, counts it, and
// says it to who asks at its socket.
func TestWhyDenied(t *testing.T) {
	t.Parallel()
	n, api := newPolicyNode(t)
	for _, name := range []string{"web", "stranger"} {
		api.labeled(name, map[string]string{"app": name})
	}
	namespace := func(log string) corev1.Namespace {
		return corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{
			Name: "shop", Annotations: map[string]string{"flock.fritzlab.net/policy-log": log},
		}}
	}
	api.namespaces.put("shop", namespace("everything"))
	n.start()
	web, stranger := n.sandbox("web"), n.sandbox("stranger")
	addrs := web.mustAddPod("web")
	from := stranger.mustAddPod("stranger")
	api.policies.put("isolate", isolate("web", ""))
	n.becomes(false, stranger.ns, addrs...)
	says := func(want string) {
		t.Helper()
		eventually(t, n.agentLog, func() error {
			stranger.ns.Try("ping", "-c1", "-W1", addrs[0].String())
			if !strings.Contains(n.agentLog(), want) {
				return errors.New("the log does not say " + want)
			}
			return nil
		})
	}
	says(`flock.fritzlab.net/policy-log=\"everything\": want \"deny\" or \"off\"`)
	const denied = "network policy denied a connection"
	if strings.Contains(n.agentLog(), denied) {
		t.Error("it is logged though the namespace does not say so")
	}
	api.namespaces.put("shop", namespace("deny"))
	says(denied)
	for _, want := range []string{
		"pod=shop/web direction=ingress", "source=" + from[0].String(), "destination=" + addrs[0].String(), "protocol=ICMP",
		`policies="NetworkPolicy shop/isolate-web"`, "no rule of the policies that select the pod allows it",
	} {
		says(want)
	}

	code, body := n.get("/metrics")
	for _, want := range []string{
		`flock_policy_decisions_total{direction="ingress",namespace="shop",policy="isolate-web",verdict="deny"} `,
		`flock_pod_denied_packets_total{direction="ingress",namespace="shop",pod="web"} `,
		`flock_pod_denied_packets_total{direction="egress",namespace="shop",pod="web"} 0`,
	} {
		if code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%d, want %s in\n%.3000s", code, want, body)
		}
	}
	code, body, err := n.askSocket(fmt.Sprintf("/policy?pod=shop/web&direction=ingress&peer=%s&protocol=1&port=0", from[0]))
	var report policy.PodReport
	if err != nil || code != http.StatusOK || json.Unmarshal([]byte(body), &report) != nil {
		t.Fatalf("%d, %v: %s", code, err, body)
	}
	if !report.InForce || report.DeniedIn == 0 || len(report.Links) != 1 || len(report.Verdicts) != 1 || report.Verdicts[0].Allowed || len(report.Decisions) == 0 {
		t.Errorf("report %+v", report)
	}
	for path, want := range map[string]string{
		"/policy":                     "want NAMESPACE/NAME",
		"/policy?pod=shop/web&peer=x": "want ingress or egress",
		"/policy?pod=shop/web&peer=x&direction=egress":                        "want an address",
		"/policy?pod=shop/web&peer=::1&direction=egress":                      "want its number",
		"/policy?pod=shop/web&peer=::1&direction=egress&protocol=6&port=http": "want a number",
	} {
		if code, body, err := n.askSocket(path); err != nil || code != http.StatusBadRequest || !strings.Contains(body, want) {
			t.Errorf("%s: %d, %v: %s; want %s", path, code, err, body, want)
		}
	}
	if code, _ := n.get("/policy?pod=shop/web"); code != http.StatusNotFound {
		t.Errorf("at --health-address, who asks about policies gets %d", code)
	}

	// Off again, the table has nothing of it.
	api.namespaces.put("shop", namespace("off"))
	eventually(t, n.agentLog, func() error {
		if table := n.host.Exec("nft", "list", "table", "inet", "flock-policy"); strings.Contains(table, "log") {
			return errors.New(table)
		}
		return nil
	})
}
