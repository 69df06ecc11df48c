//go:build cluster && services

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/metallb"
	"flock.fritzlab.net/flock/lab/plan"
)

// fromMetalLB moves Services from a real MetalLB to flock as docs/services.md says: they keep
// their addresses, and clients outside notice nothing.
func fromMetalLB(t *testing.T) {
	const (
		pool      = "10.99.0.0/24"
		namespace = "--namespace=moving"
		speakers  = "metallb-speaker"
	)
	ctx := t.Context()
	l, err := cluster.Load(labDir(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := metallb.Remove(context.WithoutCancel(ctx), l); err != nil {
			t.Error(err)
		}
	})
	if err := metallb.Install(ctx, l, metallb.Settings{Pool: netip.MustParsePrefix(pool)}, t.Output()); err != nil {
		t.Fatal(err)
	}
	apply(t, `
apiVersion: v1
kind: Namespace
metadata: {name: moving}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: moving}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web}
    spec:
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
      containers:
      - name: echo
        image: echo:dev
        imagePullPolicy: Never
        readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
`)
	t.Cleanup(func() {
		mustKubectl(t, "delete", "namespace", "moving", "--wait=false")
		mustKubectl(t, "delete", "addresspool", "moving", "--ignore-not-found")
	})
	names := []string{"local", "cluster"}
	for _, name := range names {
		apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: moving}
spec:
  type: LoadBalancer
  externalTrafficPolicy: %s
  ipFamilyPolicy: SingleStack
  ipFamilies: [IPv4]
  selector: {app: web}
  ports: [{port: 8080}]
`, name, strings.ToUpper(name[:1])+name[1:]))
	}
	mustKubectl(t, namespace, "rollout", "status", "deployment/web", servicePatience)
	addresses := func() (addrs []string) {
		for _, name := range names {
			addrs = append(addrs, mustKubectl(t, namespace, "get", "service", name, "--output=jsonpath={.status.loadBalancer.ingress[*].ip}"))
		}
		return addrs
	}
	// announcedTo waits until the router's kernel has the addresses in a table by all nodes
	// or by none.
	announcedTo := func(table string, addrs []string, by ...int) {
		t.Helper()
		eventually(t, 60*time.Second, func() error {
			for _, addr := range addrs {
				route := mustLab(t, "exec", plan.Tor, "--", "ip", "-4", "route", "show", addr, "table", table)
				for _, n := range plan.Nodes(3) {
					has := strings.Contains(route+" ", n.LAN().IPv4.Addr().String()+" ") || strings.Contains(route, n.LAN().IPv6.Addr().String()+" ")
					if has != slices.Contains(by, n.Number) {
						return fmt.Errorf("%s in the router's table %s is %q, want it by the nodes %v", addr, table, route, by)
					}
				}
			}
			return nil
		})
	}
	metalLBTable := fmt.Sprint(metallb.Table)
	var addrs []string
	eventually(t, 60*time.Second, func() error {
		if addrs = addresses(); slices.ContainsFunc(addrs, func(a string) bool { return !strings.HasPrefix(a, "10.99.0.") }) {
			return fmt.Errorf("MetalLB gave the addresses %q, want ones of %s", addrs, pool)
		}
		return nil
	})
	announcedTo(metalLBTable, addrs, 1, 2, 3)
	router := watchOn(t, plan.Tor)
	var loads []*load
	for _, addr := range addrs {
		loads = append(loads, askAtRate(t, router, "http://"+addr+":8080/", serviceRate/2, 5*time.Second))
	}
	began := time.Now()
	step := func(what string) {
		t.Helper()
		if now := addresses(); !slices.Equal(now, addrs) {
			t.Fatalf("%s: the Services have %q, had %q", what, now, addrs)
		}
		for _, l := range loads {
			l.failed(t, what, began)
		}
		began = time.Now()
	}
	time.Sleep(5 * time.Second) // some requests that MetalLB serves
	step("MetalLB alone")

	apply(t, fmt.Sprintf(`
apiVersion: flock.fritzlab.net/v1alpha1
kind: AddressPool
metadata: {name: moving}
spec:
  cidrs: [%s]
  uses: [service]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: moving}}
`, pool))
	mustKubectl(t, "--namespace=metallb-system", "scale", "deployment/controller", "--replicas=0")
	step("without MetalLB's controller")

	withoutClass(t, true)
	t.Cleanup(func() { withoutClass(t, false) })
	for _, name := range names {
		mustKubectl(t, namespace, "wait", "--for=condition=flock.fritzlab.net/AddressAssigned", "service/"+name, "--timeout=60s")
	}
	announcedTo("main", addrs, 1, 2, 3)
	step("both announce")

	for _, n := range plan.Nodes(3) {
		mustKubectl(t, "label", "node", n.Name(), speakers+"=")
	}
	t.Cleanup(func() {
		for _, n := range plan.Nodes(3) {
			mustKubectl(t, "label", "node", n.Name(), speakers+"-")
		}
	})
	mustKubectl(t, "--namespace=metallb-system", "patch", "daemonset/speaker", `--patch={"spec":{"template":{"spec":{"nodeSelector":{"`+speakers+`":""}}}}}`)
	mustKubectl(t, "--namespace=metallb-system", "rollout", "status", "daemonset/speaker", servicePatience)
	announcedTo(metalLBTable, addrs, 1, 2, 3)
	step("a selector for the speakers")
	for left := []int{1, 2, 3}; len(left) > 0; {
		mustKubectl(t, "label", "node", fmt.Sprint("node", left[0]), speakers+"-")
		left = left[1:]
		announcedTo(metalLBTable, addrs, left...)
	}
	time.Sleep(5 * time.Second) // some requests that flock alone serves
	step("the speakers' end, node by node")

	if err := metallb.Remove(ctx, l); err != nil {
		t.Fatal(err)
	}
	announcedTo("main", addrs, 1, 2, 3)
	step("MetalLB's end")
	for _, l := range loads {
		l.stop(t)
	}
	mustKubectl(t, namespace, "delete", "services", "--all")
}

// withoutClass has flock-controller give addresses to Services without a class, or not.
func withoutClass(t *testing.T, on bool) {
	t.Helper()
	args := "null"
	if on {
		args = `["--without-class"]`
	}
	mustKubectl(t, "--namespace=flock-system", "patch", "deployment/flock-controller", `--patch={"spec":{"template":{"spec":{"containers":[{"name":"controller","args":`+args+`}]}}}}`)
	mustKubectl(t, "--namespace=flock-system", "rollout", "status", "deployment/flock-controller", servicePatience)
}
