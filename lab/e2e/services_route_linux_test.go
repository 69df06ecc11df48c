//go:build cluster && services

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
)

// otherProxyMode: with kube-proxy's rules in iptables on one node and in nftables on the
// others, the route does what it has to from everywhere.
func otherProxyMode(t *testing.T, clients *serviceClients) {
	cases := newRouteCases(t)
	cases.check(t, "nftables")
	back := withIPTables(t, routeNode)
	clients.announcedBy(t, "cluster", 1, 2, 3)
	clients.announcedSomewhere(t, "local")
	for _, l := range clients.loads {
		l.failures(t, "the change of kube-proxy's mode, in which it takes its rules away", time.Now())
	}
	began := time.Now()
	cases.check(t, "iptables")
	clients.failed(t, "kube-proxy in iptables mode", began)
	back()
	clients.announcedBy(t, "cluster", 1, 2, 3)
	for _, l := range clients.loads {
		l.failures(t, "the change back", time.Now())
	}
	cases.check(t, "nftables again")
}

const (
	// routeNode is where they ask from, and routeOther the other node.
	routeNode, routeOther = "node1", "node2"
	routeLocal            = "local"
	routeCluster          = "cluster"
	outsideHost           = "outside"

	// proxyPatience is for kube-proxy to have the rules of a pod that is Ready.
	proxyPatience = 10 * time.Second
)

// routeCases are Services with their only pod on routeNode, on routeOther, and without one, of
// both policies and families.
type routeCases struct {
	addrs map[string][]netip.Addr // by policy and place
	from  map[string]routeSource  // who asks
}

// routeSource is a network namespace with its addresses.
type routeSource struct {
	netns string
	addrs []netip.Addr
}

// routePlaces are where the pod of a Service is; empty: there is none.
var routePlaces = map[string]string{"here": routeNode, "elsewhere": routeOther, "nowhere": ""}

func newRouteCases(t *testing.T) *routeCases {
	c := newPodClient(t)
	r := &routeCases{addrs: map[string][]netip.Addr{}, from: map[string]routeSource{}}
	names := []string{"asks"}
	c.create(t, "services", "asks", routeNode, nil)
	for place, node := range routePlaces {
		if node != "" {
			names = append(names, place)
			c.create(t, "services", place, node, nil)
		}
		for _, policy := range []string{routeLocal, routeCluster} {
			apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[1]s-%[2]s, namespace: services, labels: {route: cases}}
spec:
  type: LoadBalancer
  loadBalancerClass: flock.fritzlab.net/bgp
  externalTrafficPolicy: %[3]s
  ipFamilyPolicy: RequireDualStack
  selector: {app: %[2]s}
  ports: [{port: %[4]d}]
`, policy, place, strings.ToUpper(policy[:1])+policy[1:], cluster.EchoPort))
		}
	}
	t.Cleanup(func() {
		mustKubectl(t, append([]string{"--namespace=services", "delete", "pods", "--wait=false", "--ignore-not-found"}, names...)...)
		mustKubectl(t, "--namespace=services", "delete", "services", "--selector=route=cases")
	})
	asks := c.ready(t, "services", "asks", 1)[0]
	for _, name := range names[1:] {
		c.ready(t, "services", name, 1)
	}
	lan := func(name string, a plan.Addresses) routeSource {
		return routeSource{member.Of(labDir(t), name).NetNS(), []netip.Addr{a.IPv6.Addr(), a.IPv4.Addr()}}
	}
	r.from["a pod"] = routeSource{c.netns(t, asks), podIPs(t, asks)}
	r.from["the node"] = lan(routeNode, plan.Nodes(1)[0].LAN())
	r.from[outsideHost] = lan(plan.Outside, plan.OutsideHost)
	for place := range routePlaces {
		for _, policy := range []string{routeLocal, routeCluster} {
			name := policy + "-" + place
			eventually(t, 60*time.Second, func() error {
				out := mustKubectl(t, "--namespace=services", "get", "service", name, "--output=jsonpath={.status.loadBalancer.ingress[*].ip}")
				r.addrs[name] = nil
				for text := range strings.FieldsSeq(out) {
					r.addrs[name] = append(r.addrs[name], netip.MustParseAddr(text))
				}
				if len(r.addrs[name]) != 2 {
					return fmt.Errorf("the Service %s has the addresses %q, want one of each family", name, out)
				}
				return nil
			})
		}
	}
	return r
}

// announcers are the numbers of the nodes that announce a Service.
func (r *routeCases) announcers(policy, place string) []int {
	switch {
	case place == "nowhere":
		return nil
	case policy == routeCluster:
		return []int{1, 2, 3}
	case place == "here":
		return []int{1}
	}
	return []int{2}
}

// check asks each Service from everywhere: at its port, and at others, which the node itself
// listens on or nobody does.
func (r *routeCases) check(t *testing.T, mode string) {
	t.Helper()
	const otherPort = 8081
	for place := range routePlaces {
		for _, policy := range []string{routeLocal, routeCluster} {
			name, announcers := policy+"-"+place, r.announcers(policy, place)
			for _, addr := range r.addrs[name] {
				eventually(t, 60*time.Second, func() error {
					if got := routedBy(t, addr.String()); !slices.Equal(got, announcers) {
						return fmt.Errorf("%s: %s of Service %s is announced by the nodes %v, want %v", mode, addr, name, got, announcers)
					}
					return nil
				})
				for who, from := range r.from {
					where := fmt.Sprintf("%s: %s (Service %s) from %s", mode, addr, name, who)
					pod, client, err := echoFrom(from.netns, netip.AddrPortFrom(addr, cluster.EchoPort))
					// A node announces a new pod of a Service with Local before kube-proxy knows of it, and
					// translates meanwhile, for those outside.
					for end := time.Now().Add(proxyPatience); who != outsideHost && place != "nowhere" && pod != place && time.Now().Before(end); {
						time.Sleep(200 * time.Millisecond)
						pod, client, err = echoFrom(from.netns, netip.AddrPortFrom(addr, cluster.EchoPort))
					}
					switch {
					case place == "nowhere":
						if !refusedSoon(err) {
							t.Errorf("%s: answered by %q, %v; want a refusal", where, pod, err)
						}
					case err != nil || pod != place:
						t.Errorf("%s: answered by %q, %v; want %q", where, pod, err, place)
					// A client outside is seen by a pod of a Service with Local.
					case policy == routeLocal && who == outsideHost && !slices.Contains(from.addrs, client):
						t.Errorf("%s: the pod sees %s, want one of %s", where, client, from.addrs)
					}
					// Where nobody announces, the router refuses for those outside.
					if _, _, err := echoFrom(from.netns, netip.AddrPortFrom(addr, otherPort)); !refusedSoon(err) {
						t.Errorf("%s, another port: %v; want a refusal", where, err)
					}
				}
			}
		}
	}
}

// routePatience lets a SYN be repeated once: TCP over IPv6 takes an ICMP error that comes while
// connect(2) has the socket for a transient one, and believes the next.
const routePatience = 2500 * time.Millisecond

// echoFrom asks an echo server from a network namespace over a new connection, and returns which
// pod has answered, and which client it has seen.
func echoFrom(netns string, to netip.AddrPort) (pod string, client netip.Addr, err error) {
	var conn net.Conn
	err = member.InNet(netns, func() error {
		conn, err = net.DialTimeout("tcp", to.String(), routePatience)
		return err
	})
	if err != nil {
		return "", client, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", client, err
	}
	transport := &http.Transport{DisableKeepAlives: true, Dial: func(string, string) (net.Conn, error) { return conn, nil }}
	resp, err := (&http.Client{Transport: transport}).Get("http://" + net.JoinHostPort(to.Addr().String(), strconv.Itoa(int(to.Port()))) + "/")
	if err != nil {
		return "", client, err
	}
	defer resp.Body.Close()
	var said struct {
		Pod    string
		Client netip.Addr
	}
	err = json.NewDecoder(resp.Body).Decode(&said)
	return said.Pod, said.Client.Unmap(), err
}

// refusedSoon: a reset or an ICMP error came, and not nothing.
func refusedSoon(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}
