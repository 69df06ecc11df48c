//go:build apiserver

package proxy

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/kube/kubetest"
)

const servedPort = 8080

// servedAt are the addresses of a Service, and of its server on another machine.
var servedAt = map[netip.Addr]netip.Addr{
	netip.MustParseAddr("2001:db8:0:5::80"): netip.MustParseAddr("2001:db8:0:1::53"),
	netip.MustParseAddr("10.96.0.80"):       netip.MustParseAddr("198.51.100.53"),
}

// TestAPIServer: whose address a server sees of a pod that asks a Service's ClusterIP depends on
// how kube-proxy knows the node's pods, and the command of docs/troubleshooting.md shows that of
// the kube-proxy that runs. It is a real one, with a real API server.
func TestAPIServer(t *testing.T) {
	s := kubetest.Start(t, "../../../deploy")
	node, server := s.NS(), nettest.New(t)
	for _, family := range []string{"ipv4", "ipv6"} {
		node.Sysctl(family+"/conf/all/forwarding", "1")
	}
	node.Veth("eth0", server, "eth0")
	node.Address("eth0", "2001:db8:0:1::11/64")
	node.Address("eth0", "198.51.100.11/24")
	server.Address("eth0", "2001:db8:0:1::53/64")
	server.Address("eth0", "198.51.100.53/24")
	server.IP("-6", "route", "add", "default", "via", "2001:db8:0:1::11")
	server.IP("-4", "route", "add", "default", "via", "198.51.100.11")
	node.IP("link", "add", "cni0", "type", "bridge") // another CNI's; in mode nftables Kubernetes 1.32 wants it to be there
	serveClients(t, server)

	// One pod has addresses of the node's pod CIDRs, the other static ones.
	pods := map[string][]netip.Addr{
		"1": {netip.MustParseAddr("2001:db8:100::1"), netip.MustParseAddr("10.244.1.1")},
		"2": {netip.MustParseAddr("2001:db8:f::2"), netip.MustParseAddr("203.0.113.2")},
	}
	clients := map[string]*nettest.NS{}
	for name, addrs := range pods {
		clients[name] = newPod(t, node, kernel.LinkPrefix+name, addrs)
	}

	s.Kubectl(`
apiVersion: v1
kind: Node
metadata: {name: node1}
spec: {podCIDRs: ["2001:db8:100::/64", 10.244.1.0/24], podCIDR: "2001:db8:100::/64"}
`, "create", "--filename=-")
	s.Kubectl("", "patch", "node", "node1", "--subresource=status", "--patch",
		`{"status":{"addresses":[{"type":"InternalIP","address":"2001:db8:0:1::11"},{"type":"InternalIP","address":"198.51.100.11"}]}}`)
	s.Kubectl(fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: served}
spec:
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv6, IPv4]
  clusterIP: "2001:db8:0:5::80"
  clusterIPs: ["2001:db8:0:5::80", 10.96.0.80]
  ports: [{port: %d}]
`, servedPort), "create", "--filename=-")
	for vip, at := range servedAt {
		family := "IPv6"
		if vip.Is4() {
			family = "IPv4"
		}
		s.Kubectl(fmt.Sprintf(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: served-%s, labels: {kubernetes.io/service-name: served}}
addressType: %s
ports: [{name: "", port: %d, protocol: TCP}]
endpoints: [{addresses: [%q], conditions: {ready: true}}]
`, strings.ToLower(family), family, servedPort, at), "create", "--filename=-")
	}

	oldPrefix := strings.Contains(node.Exec("kube-proxy", "--version"), " v1.32.")
	const cidrs = `clusterCIDR: "2001:db8:100::/48,10.244.0.0/16"` + "\n"
	for _, c := range []struct {
		name, mode, config string
		masqueraded        map[string]bool
		shown              []string
	}{
		{"as kubeadm sets it", "nftables", `detectLocalMode: ""` + "\n" + cidrs, map[string]bool{"2": true}, []string{`"detectLocalMode":"ClusterCIDR"`, `"clusterCIDR`, "2001:db8:100::/48", "10.244.0.0/16"}},
		{"as kubeadm sets it", "iptables", `detectLocalMode: ""` + "\n" + cidrs, map[string]bool{"2": true}, []string{`"detectLocalMode":"ClusterCIDR"`}},
		{"the Node's CIDRs", "nftables", "detectLocalMode: NodeCIDR\n" + cidrs, map[string]bool{"2": true}, []string{`"detectLocalMode":"NodeCIDR"`}},
		{"another CNI's links", "nftables", "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: cali}\n", map[string]bool{"1": true, "2": true}, []string{`"interfaceNamePrefix":"cali"`}},
		{"a bridge", "nftables", "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\n", map[string]bool{"1": true, "2": true}, []string{`"detectLocalMode":"BridgeInterface"`}},
		{"the remedy", "nftables", remedy + cidrs, nil, []string{`"detectLocalMode":"InterfaceNamePrefix"`, `"interfaceNamePrefix":"flock"`}},
		{"the remedy", "iptables", remedy, nil, []string{`"detectLocalMode":"InterfaceNamePrefix"`, `"interfaceNamePrefix":"flock"`}},
	} {
		t.Run(c.name+" "+c.mode, func(t *testing.T) {
			if oldPrefix && c.mode == "nftables" && strings.Contains(c.config, "InterfaceNamePrefix") {
				t.Skip("this kube-proxy takes the prefix for a whole name, and writes no rules: docs/supported.md")
			}
			stop := runProxy(t, s, c.mode, c.config)
			defer stop()
			for name, client := range clients {
				for i, own := range pods[name] {
					for vip, at := range servedAt {
						if vip.Is4() != own.Is4() {
							continue
						}
						want := own
						if c.masqueraded[name] {
							want = []netip.Addr{netip.MustParseAddr("2001:db8:0:1::11"), netip.MustParseAddr("198.51.100.11")}[i]
						}
						nettest.Eventually(t, func() error { // until kube-proxy has the Service
							seen, err := seenAs(client, vip)
							if err == nil && seen != want {
								t.Errorf("pod %s is seen as %s through %s, want %s", own, seen, vip, want)
							}
							return err
						})
						if seen, err := seenAs(client, at); seen != own {
							t.Errorf("pod %s is seen as %s, %v, at the server's own address", own, seen, err)
						}
					}
				}
			}
			shown := node.Exec("sh", "-c", lookCommand(t))
			for _, want := range c.shown {
				if !strings.Contains(strings.ToLower(shown), strings.ToLower(want)) { // older ones write upper case
					t.Errorf("the command of the page does not show %s:\n%s", want, shown)
				}
			}
		})
	}
}

// remedy is what docs/deploy.md has.
const remedy = "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: flock}\n"

// lookCommand is the one by which the page has the symptom's cause seen.
func lookCommand(t *testing.T) string {
	t.Helper()
	for file, text := range map[string]string{"deploy.md": remedy, "troubleshooting.md": "detectLocalMode: InterfaceNamePrefix"} {
		page, err := os.ReadFile("../../../docs/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(page), text) {
			t.Errorf("docs/%s does not have the remedy %q", file, text)
		}
	}
	page, err := os.ReadFile("../../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	_, entry, _ := strings.Cut(string(page), "### A server sees the node's address")
	entry, _, _ = strings.Cut(entry, "\n### ")
	m := regexp.MustCompile("`(curl [^`]+)`").FindStringSubmatch(entry)
	if m == nil {
		t.Fatalf("docs/troubleshooting.md has no curl that shows it:\n%s", entry)
	}
	return m[1]
}

// newPod is a pod with a link as flock makes it.
func newPod(t *testing.T, node *nettest.NS, link string, addrs []netip.Addr) *nettest.NS {
	t.Helper()
	p := nettest.New(t)
	node.Veth(link, p, "eth0")
	for _, a := range addrs {
		host := netip.PrefixFrom(a, a.BitLen())
		p.Address("eth0", host.String())
		family, gateway := "-6", "fe80::1/64"
		if a.Is4() {
			family, gateway = "-4", "169.254.1.1/32"
		}
		node.Address(link, gateway)
		node.IP(family, "route", "add", host.String(), "dev", link)
		gateway, _, _ = strings.Cut(gateway, "/")
		p.IP(family, "route", "add", "default", "via", gateway, "dev", "eth0", "onlink")
	}
	return p
}

// runProxy starts a kube-proxy until it is stopped, which takes its rules away too.
func runProxy(t *testing.T, s *kubetest.Server, mode, config string) (stop func()) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kube-proxy.yaml")
	config = fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
hostnameOverride: node1
clientConnection: {kubeconfig: %s}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s}
%s`, mode, s.AdminKubeconfig(), config)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "kube-proxy.log"))
	if err != nil {
		t.Fatal(err)
	}
	process, ended := s.Process(log, "kube-proxy", "--config="+file)
	return func() {
		_ = process.Signal(syscall.SIGKILL)
		<-ended
		s.NS().Exec("nft", "flush", "ruleset") // kube-proxy --cleanup of Kubernetes 1.32 wants ipset
		if t.Failed() {
			said, _ := os.ReadFile(log.Name())
			t.Logf("kube-proxy's log:\n%s", said)
		}
		log.Close()
	}
}

// serveClients tells each client by which address it is seen.
func serveClients(t *testing.T, ns *nettest.NS) {
	t.Helper()
	var l net.Listener
	var err error
	ns.Run(func() { l, err = net.Listen("tcp", fmt.Sprintf(":%d", servedPort)) })
	if err != nil {
		t.Fatal(err)
	}
	nettest.Serve(t, l, func(c net.Conn) {
		_, _ = io.WriteString(c, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().String())
	})
}

// seenAs is the address by which the server sees a client.
func seenAs(client *nettest.NS, to netip.Addr) (seen netip.Addr, err error) {
	var c net.Conn
	client.Run(func() {
		c, err = net.DialTimeout("tcp", netip.AddrPortFrom(to, servedPort).String(), 200*time.Millisecond)
	})
	if err != nil {
		return seen, err
	}
	defer c.Close()
	said, err := io.ReadAll(c)
	if err != nil {
		return seen, err
	}
	return netip.ParseAddr(string(said))
}
