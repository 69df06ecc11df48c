//go:build cluster

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/lab/plan"
)

// serviceOutages are what else clients of Services must not notice: make test-services.
var serviceOutages []func(*testing.T, *serviceClients)

const (
	// serviceRate is how many requests a second clients make in all.
	serviceRate     = 200.0
	serviceRollout  = "deployment/web"
	servicePatience = "--timeout=120s"
)

// serviceStory: Services of both traffic policies and families are announced by the nodes that
// can serve them, and whatever happens to pods, nodes, kube-proxy and API server, clients
// outside notice nothing.
func serviceStory(t *testing.T) {
	apply(t, `
apiVersion: v1
kind: Namespace
metadata: {name: services}
---
apiVersion: flock.fritzlab.net/v1alpha1
kind: AddressPool
metadata: {name: services}
spec:
  cidrs: ["2001:db8:80::/64", 10.97.80.0/24]
  uses: [service]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: services}}
`)
	t.Cleanup(func() {
		mustKubectl(t, "delete", "namespace", "services", "--wait=false")
		mustKubectl(t, "delete", "addresspool", "services")
	})
	for _, policy := range []string{"Local", "Cluster"} {
		apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: services}
spec:
  type: LoadBalancer
  loadBalancerClass: flock.fritzlab.net/bgp
  externalTrafficPolicy: %s
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 8080}]
`, strings.ToLower(policy), policy))
	}
	apply(t, `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: services}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web}
    spec:
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: web}}}
      terminationGracePeriodSeconds: 30
      containers:
      - name: echo
        image: echo:dev
        imagePullPolicy: Never
        lifecycle: {preStop: {sleep: {seconds: 5}}}
        readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
`)
	serviceRolledOut(t)
	clients := &serviceClients{addrs: map[string][]string{}, router: watchOn(t, plan.Tor)}
	for _, name := range []string{"local", "cluster"} {
		eventually(t, 60*time.Second, func() error {
			out := mustKubectl(t, "--namespace=services", "get", "service", name, "--output=jsonpath={.status.loadBalancer.ingress[*].ip}")
			if clients.addrs[name] = strings.Fields(out); len(clients.addrs[name]) != 2 {
				return fmt.Errorf("the Service %s has the addresses %q, want one of each family", name, out)
			}
			return nil
		})
	}
	clients.announcedBy(t, "cluster", 1, 2, 3)
	clients.announcedSomewhere(t, "local")
	for _, addr := range clients.all() {
		host := addr
		if strings.Contains(addr, ":") {
			host = "[" + addr + "]"
		}
		clients.loads = append(clients.loads, askAtRate(t, clients.router, "http://"+host+":8080/", serviceRate/4, 5*time.Second))
	}

	began := time.Now()
	mustKubectl(t, "--namespace=services", "rollout", "restart", serviceRollout)
	serviceRolledOut(t)
	clients.failed(t, "a rolling update", began)

	began = time.Now()
	if killed := killOn(t, "node1", "kube-proxy"); killed != 1 {
		t.Errorf("%d kube-proxies killed", killed)
	}
	mustLab(t, "up")
	clients.failed(t, "a restart of kube-proxy", began)

	for _, outage := range serviceOutages {
		outage(t, clients)
	}
	for _, l := range clients.loads {
		l.stop(t)
	}
	clients.router.stop(t)
}

// serviceRolledOut waits until all pods of the Deployment are Ready, and those before them
// have ended.
func serviceRolledOut(t *testing.T) {
	t.Helper()
	mustKubectl(t, "--namespace=services", "rollout", "status", serviceRollout, servicePatience)
	want := mustKubectl(t, "--namespace=services", "get", serviceRollout, "--output=jsonpath={.spec.replicas}")
	eventually(t, time.Minute, func() error {
		if pods := strings.Fields(mustKubectl(t, "--namespace=services", "get", "pods", "--output=name")); fmt.Sprint(len(pods)) != want {
			return fmt.Errorf("%d pods, want %s", len(pods), want)
		}
		return nil
	})
}

// serviceClients ask the Services' addresses.
type serviceClients struct {
	addrs map[string][]string // by Service
	loads []*load             // one for each of all
	// router shows each change of its routes.
	router *routeWatch
}

// all are the addresses of both Services.
func (c *serviceClients) all() []string { return slices.Concat(c.addrs["local"], c.addrs["cluster"]) }

// failed fails for each request since the last call that did.
func (c *serviceClients) failed(t *testing.T, during string, began time.Time) {
	t.Helper()
	for _, l := range c.loads {
		l.failed(t, during, began)
	}
}

// announcedBy waits until the router's way to a Service leads to these nodes.
func (c *serviceClients) announcedBy(t *testing.T, name string, numbers ...int) {
	t.Helper()
	eventually(t, 60*time.Second, func() error {
		for _, addr := range c.addrs[name] {
			if got := routedBy(t, addr); !slices.Equal(got, numbers) {
				return fmt.Errorf("%s of Service %s is announced by the nodes %v, want %v", addr, name, got, numbers)
			}
		}
		return nil
	})
}

// announcedSomewhere waits until a node announces each address of a Service.
func (c *serviceClients) announcedSomewhere(t *testing.T, name string) {
	t.Helper()
	eventually(t, 60*time.Second, func() error {
		for _, addr := range c.addrs[name] {
			if len(routedBy(t, addr)) == 0 {
				return fmt.Errorf("no node announces %s of Service %s", addr, name)
			}
		}
		return nil
	})
}

// routedBy are the numbers of the nodes to which the router's kernel sends what is for an
// address.
func routedBy(t *testing.T, addr string) (numbers []int) {
	t.Helper()
	route := announcing(t, addr) + " "
	for _, n := range plan.Nodes(3) {
		lan := n.LAN()
		if strings.Contains(route, "via "+lan.IPv6.Addr().String()+" ") || strings.Contains(route, "via "+lan.IPv4.Addr().String()+" ") || strings.Contains(route, "via inet6 "+lan.IPv6.Addr().String()+" ") {
			numbers = append(numbers, n.Number)
		}
	}
	return numbers
}
