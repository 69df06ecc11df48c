package survey

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// newNode is a node with an uplink, summaries, a pod with a static and an anycast address, and
// nothing in flock's way.
func newNode(t testing.TB) (*nettest.NS, *Surveyor) {
	t.Helper()
	ns, router, pod := nettest.New(t), nettest.New(t), nettest.New(t)
	ns.Sysctl("ipv4/conf/all/rp_filter", "0")
	ns.Sysctl("ipv4/ip_forward", "1")
	ns.Veth("uplink", router, "lan")
	ns.Address("uplink", "192.0.2.11/24")
	ns.Address("uplink", "2001:db8:0:1::11/64")
	ns.Veth("flock0badcafe", pod, "eth0")
	ns.Exec("sh", "-ec", `
		sysctl -q -w net.ipv4.conf.uplink.rp_filter=0
		ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8:0:1::1
		ip route add unreachable 10.244.1.0/24 proto 85 metric 512
		ip -6 route add unreachable 2001:db8:100::/64 proto 85 metric 512
		ip route add 10.244.1.5 dev flock0badcafe proto 85 metric 1024
		ip route add 198.51.100.7 dev flock0badcafe proto 85 metric 768
		ip -6 route add 2001:db8:a::53 dev flock0badcafe proto 85 metric 512
		nft 'table inet flock { chain pod-sources { type filter hook forward priority 0; policy drop; }; }'
		nft 'table inet other { chain inbound { type filter hook input priority 0; policy drop; }; chain outward { type filter hook forward priority 0; tcp dport 1 drop; }; }'`)
	var s *Surveyor
	ns.Run(func() {
		var err error
		if s, err = Open(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(s.Close)
	return ns, s
}

func TestFindings(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, do string
		breaks   bool
		object   string // of the one finding; empty: there is none
		text     string
	}{
		{name: "nothing"},
		{"a blackhole of another CNI's", "ip route add blackhole 10.244.1.0/24 proto bird", true,
			"blackhole 10.244.1.0/24 proto bird metric 0", "wins over the summary 10.244.1.0/24"},
		{"an IPv6 blackhole", "ip -6 route add blackhole 2001:db8:100::/64 proto static metric 20", true,
			"blackhole 2001:db8:100::/64 proto static metric 20", "BIRD does not announce it"},
		{"a prefix that goes elsewhere", "ip route add 10.244.1.0/24 via 192.0.2.1 proto static", true,
			"10.244.1.0/24 via 192.0.2.1 proto static metric 0", "wins over the summary"},
		{"a pod's address", "ip route add 10.244.1.5 via 192.0.2.1 proto 186 metric 20", true,
			"10.244.1.5/32 via 192.0.2.1 proto bgp metric 20", "the pod with 10.244.1.5"},
		{"a static address", "ip route add 198.51.100.7 dev uplink metric 5", true,
			"198.51.100.7/32 proto boot metric 5", "the address is not announced"},
		{"an anycast address", "ip -6 route add prohibit 2001:db8:a::53 metric 7 proto static", true,
			"prohibit 2001:db8:a::53/128 proto static metric 7", "not announced"},
		{name: "a route that loses", do: "ip route add blackhole 10.244.1.0/24 metric 900; ip route add 10.244.1.5 via 192.0.2.1 metric 2000"},
		{name: "routes of other prefixes", do: "ip route add blackhole 10.244.1.64/26; ip route add blackhole 10.244.0.0/16; ip -6 route add 2001:db8::/32 via 2001:db8:0:1::1"},
		{"a subnet in the pod CIDR", "ip address add 10.244.1.200/28 dev uplink", true,
			"address 10.244.1.200/28 dev uplink", "overlaps the pod CIDR 10.244.1.0/24"},
		{"a pod CIDR in the subnet", "ip address add 10.244.0.9/16 dev uplink", true,
			"address 10.244.0.9/16 dev uplink", "overlaps the pod CIDR 10.244.1.0/24"},
		{name: "a host address in the pod CIDR", do: "ip address add 10.244.1.1/32 dev lo"},
		{"iptables' policy", "nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'", true,
			"chain ip filter FORWARD", "a firewall drops"},
		{"firewalld", "nft 'table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; ct state established accept; counter reject with icmpx type admin-prohibited; }; }'", true,
			"chain inet firewalld filter_FORWARD", "a firewall drops"},
		{name: "a firewall that knows flock", do: "nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; iifname \"flock*\" accept; oifname \"flock*\" accept; }; }'"},
		{name: "a firewall that knows the pod CIDR", do: "nft 'table ip filter { chain ours { ip saddr 10.244.0.0/16 accept; }; chain FORWARD { type filter hook forward priority 0; policy drop; jump ours; }; }'"},
		{name: "a firewall that knows it by a mask", do: "nft 'table inet fw { chain pass { type filter hook forward priority 0; policy drop; ip6 daddr 2001:db8:100::/44 accept; ip daddr 10.240.0.0/12 accept; }; }'"},
		{"a firewall that knows others", "nft 'table inet fw { chain pass { type filter hook forward priority 0; policy drop; ip daddr 172.17.0.0/16 accept; }; }'", true,
			"chain inet fw pass", "a firewall drops"},
		{name: "a firewall that drops some", do: "nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; ct state invalid drop; ip saddr 192.0.2.66 drop; }; }'"},
		{"iptables-legacy's policy", "iptables-legacy -P FORWARD DROP", true,
			"chain iptables-legacy -t filter FORWARD", "a firewall drops"},
		{"ip6tables-legacy's policy", "ip6tables-legacy -P FORWARD DROP", true,
			"chain ip6tables-legacy -t filter FORWARD", "a firewall drops"},
		{"iptables-legacy's last rule", "iptables-legacy -A FORWARD -i docker0 -j ACCEPT; iptables-legacy -A FORWARD -j REJECT", true,
			"chain iptables-legacy -t filter FORWARD", "a firewall drops"},
		{"another table of iptables-legacy", "iptables-legacy -t mangle -P FORWARD DROP", true,
			"chain iptables-legacy -t mangle FORWARD", "a firewall drops"},
		{"iptables-legacy that knows others", "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -i docker0 -s 172.17.0.0/16 -j ACCEPT; iptables-legacy -A FORWARD -j RETURN; iptables-legacy -A FORWARD ! -i flock+ -j ACCEPT", true,
			"chain iptables-legacy -t filter FORWARD", "a firewall drops"},
		{name: "iptables-legacy that knows flock", do: "iptables-legacy -P FORWARD DROP; iptables-legacy -N ours; iptables-legacy -A FORWARD -j ours; iptables-legacy -A ours -i flock+ -j ACCEPT; iptables-legacy -A ours -o flock+ -j ACCEPT"},
		{name: "ip6tables-legacy that knows the pod CIDR", do: "ip6tables-legacy -P FORWARD DROP; ip6tables-legacy -A FORWARD -d 2001:db8::/32 -j ACCEPT"},
		{name: "iptables-legacy that accepts", do: "iptables-legacy -P INPUT DROP; iptables-legacy -A FORWARD -s 192.0.2.66 -j DROP; iptables-legacy -A FORWARD -j ACCEPT; iptables-legacy -A FORWARD -j DROP; ip6tables-legacy -L -n >/dev/null"},
		{"a chain before routing", "nft 'table inet fw { chain every { type filter hook prerouting priority 0; policy drop; }; }'", true,
			"chain inet fw every", "a firewall drops"},
		{"a chain after routing", "nft 'table ip6 fw { chain every { type filter hook postrouting priority 0; counter drop; }; }'", true,
			"chain ip6 fw every", "a firewall drops"},
		{"a chain on a pod's link", "nft 'table netdev fw { chain in { type filter hook ingress device flock0badcafe priority 0; policy drop; }; }'", true,
			"chain netdev fw in", "flock0badcafe"},
		{name: "a chain on another link", do: "nft 'table netdev fw { chain in { type filter hook ingress device uplink priority 0; policy drop; }; }'"},
		{name: "a chain of network address translation", do: "nft 'table ip nat { chain in { type nat hook prerouting priority 0; counter drop; }; }'"},
		{"a rule against flock's links", "nft 'table inet fw { chain forwarded { type filter hook forward priority 0; ct state invalid drop; oifname \"flock*\" counter drop; tcp dport 1 accept; }; }'", true,
			"chain inet fw forwarded", "drops all packets of pods"},
		{"a rule against one of flock's links", "nft 'table ip fw { chain forwarded { type filter hook forward priority 0; iifname flock0badcafe reject; }; }'", true,
			"chain ip fw forwarded", "drops all packets of pods"},
		{name: "a rule against some packets of pods", do: "nft 'table inet fw { chain forwarded { type filter hook forward priority 0; oifname \"flock*\" tcp dport 25 drop; }; }'"},
		{"a rule to nowhere", "ip rule add priority 10 to 10.244.0.0/16 blackhole", true,
			"ip -4 rule of priority 10", "are dropped or refused"},
		{"a rule against packets of pods", "ip -6 rule add priority 10 from 2001:db8:100::/56 unreachable", true,
			"ip -6 rule of priority 10", "2001:db8:100::/64"},
		{"a rule to another table", "ip -6 rule add priority 10 table 1000; ip -6 route add unreachable default table 1000; ip -6 route add 2001:db8:a::53 dev uplink table 1000", true,
			"ip -6 rule of priority 10", "take its table 1000"},
		{"no rule to the main table", "ip rule del table main", true, "ip -4 rule", "no rule leads all packets"},
		{name: "rules of others", do: "ip rule add priority 10 to 198.18.0.0/15 blackhole; ip rule add priority 11 fwmark 7 table 7; ip rule add priority 12 from 192.0.2.11 table 7; ip rule add priority 13 table main suppress_prefixlength 0; ip rule add priority 14 iif uplink blackhole; ip rule add priority 40000 blackhole; ip route add blackhole default table 7; ip rule add priority 15 table 8; ip route add 198.18.0.0/15 via 192.0.2.1 table 8"},
		{"a pod's address on the node", "ip address add 10.244.1.5/32 dev lo", true,
			"address 10.244.1.5/32 dev lo", "the node answers in the place of the pod"},
		{"an anycast address on the node", "ip -6 address add 2001:db8:a::53/128 dev uplink nodad", true,
			"address 2001:db8:a::53/128 dev uplink", "the node answers"},
		{"an anycast address on the node, and the kernel's route to it", "ip -6 address add 2001:db8:a::53/128 dev uplink nodad; until ip -6 route show | grep -q '^2001:db8:a::53 dev uplink'; do sleep 0.01; done", true,
			"address 2001:db8:a::53/128 dev uplink", "the node answers"},
		{"a shaper on a pod's link", "tc qdisc add dev flock0badcafe root tbf rate 1mbit burst 2000 latency 10ms", false,
			"queueing discipline tbf on flock0badcafe", "tc qdisc del dev flock0badcafe root"},
		{"a hook for programs on a pod's link", "tc qdisc add dev flock0badcafe clsact", false,
			"queueing discipline clsact on flock0badcafe", "another program"},
		{"a hook for programs on an uplink", "tc qdisc add dev uplink clsact", false,
			"queueing discipline clsact on uplink", "tc qdisc del dev uplink clsact"},
		{name: "a hook for programs on another link", do: "ip link add br0 type bridge; ip link set br0 up; tc qdisc add dev br0 clsact"},
		{name: "a shaper on another link", do: "tc qdisc add dev uplink root tbf rate 1mbit burst 2000 latency 10ms; tc qdisc replace dev flock0badcafe root pfifo_fast"},
		{"rp_filter", "sysctl -q -w net.ipv4.conf.all.rp_filter=2", false, "net.ipv4.conf.all.rp_filter=2", "anycast"},
		{"an uplink that does not forward", "sysctl -q -w net.ipv4.conf.uplink.forwarding=0", true,
			"net.ipv4.conf.uplink.forwarding=0", "are dropped"},
		{name: "another link that does not", do: "ip link add br0 type bridge; sysctl -q -w net.ipv4.conf.br0.forwarding=0"},
		{"another plugin's link", "ip link add cali0123456789a type bridge; ip link set cali0123456789a up", false,
			"link cali0123456789a", "Calico"},
		{"kube-proxy in mode IPVS", "ip link add kube-ipvs0 type bridge", false, "link kube-ipvs0", "mode IPVS"},
		{"another plugin's chains", "iptables-nft -N KUBE-ROUTER-FORWARD; iptables-nft -A FORWARD -j KUBE-ROUTER-FORWARD; iptables-nft -N KUBE-POD-FW-ABC; iptables-nft -A KUBE-POD-FW-ABC -d 10.244.1.9 -j REJECT", false,
			"chain ip filter KUBE-ROUTER-FORWARD", "kube-router"},
		{"another plugin's chains in iptables-legacy", "ip6tables-legacy -t mangle -N cali-FORWARD", false,
			"chain ip6tables-legacy -t mangle cali-FORWARD", "ip6tables-legacy-save | grep -v -e cali- | ip6tables-legacy-restore"},
		{"another plugin's routes", "ip route add 10.245.2.0/24 via 192.0.2.1 proto 17; ip -6 route add 2001:db8:101::/64 via 2001:db8:0:1::1 proto 17", false,
			"2 route(s) of protocol 17, such as 2001:db8:101::/64 via 2001:db8:0:1::1", "kube-router"},
		{"another plugin's route in the place of the kernel's", "ip route replace 192.0.2.0/24 via 192.0.2.1 dev uplink proto 17", false,
			"192.0.2.0/24 via 192.0.2.1 proto 17 metric 0", "the subnet of uplink"},
		{name: "kube-proxy's chains", do: "iptables-nft -N KUBE-SERVICES; iptables-nft -t nat -N KUBE-POSTROUTING"},
		{name: "one that is down", do: "ip link add cni0 type bridge"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			ns, s := newNode(t)
			if tc.do != "" {
				ns.Exec("sh", "-ec", tc.do)
			}
			snapshot, err := s.Read()
			if err != nil {
				t.Fatal(err)
			}
			all := snapshot.Findings()
			if tc.object == "" {
				if len(all) > 0 {
					t.Errorf("findings %v", all)
				}
				return
			}
			if len(all) != 1 {
				t.Fatalf("findings %v, want one", all)
			}
			f := all[0]
			if f.Breaks != tc.breaks || f.Object != tc.object || !strings.Contains(f.Text+f.Remedy, tc.text) || f.Remedy == "" {
				t.Errorf("finding %+v", f)
			}
			_, err = s.Sync(context.Background())
			if (err != nil) != tc.breaks || err != nil && !strings.Contains(err.Error(), tc.object) {
				t.Errorf("error %v", err)
			}
			if command, _, _ := strings.Cut(f.Remedy, " "); slices.Contains([]string{"ip", "nft", "iptables-legacy", "ip6tables-legacy", "tc"}, command) {
				ns.Exec("sh", "-ec", f.Remedy)
				if snapshot, err = s.Read(); err != nil || len(snapshot.Findings()) > 0 {
					t.Errorf("after the remedy: %v, %v", snapshot.Findings(), err)
				}
			}
		})
	}
}

// Two uplinks make strict reverse path filtering a risk.
func TestRPFilterOfTwoUplinks(t *testing.T) {
	t.Parallel()
	ns, s := newNode(t)
	ns.Veth("uplink2", nettest.New(t), "lan")
	ns.Address("uplink2", "203.0.113.11/24")
	ns.Exec("sh", "-ec", `ip route replace default nexthop via 192.0.2.1 nexthop via 203.0.113.1
		sysctl -q -w net.ipv4.conf.uplink2.rp_filter=1`)
	snapshot, err := s.Read()
	if err != nil {
		t.Fatal(err)
	}
	all := snapshot.Findings()
	if len(all) != 1 || all[0].Breaks || all[0].Object != "net.ipv4.conf.uplink2.rp_filter=1" {
		t.Errorf("findings %v, uplinks %v", all, snapshot.Uplinks)
	}
}

// TestPrograms: programs on flock's links, on uplinks and at connect(2) are a risk.
func TestPrograms(t *testing.T) {
	t.Parallel()
	s := Snapshot{
		Links:   []rtnl.Link{{Index: 1, Name: "uplink", XDP: true}, {Index: 2, Name: "other", XDP: true}, {Index: 3, Name: "flock0badcafe"}},
		Uplinks: map[int]bool{1: true}, Programs: []string{"uplink", "flock0badcafe"}, Connect: true,
	}
	var objects []string
	for _, f := range s.attached() {
		if objects = append(objects, f.Object); f.Breaks || f.Text == "" || f.Remedy == "" {
			t.Errorf("finding %+v", f)
		}
	}
	want := []string{"XDP program on uplink", "BPF program on uplink", "BPF program on flock0badcafe", "BPF program at connect(2)"}
	if !slices.Equal(objects, want) {
		t.Errorf("findings %q, want %q", objects, want)
	}
}

func ExampleFinding_String() {
	fmt.Println(Finding{Object: "blackhole 10.244.1.0/24 proto bird metric 0", Text: "it wins", Remedy: "ip route del blackhole 10.244.1.0/24 proto bird metric 0"})
	// Output: blackhole 10.244.1.0/24 proto bird metric 0: it wins; to remove it: ip route del blackhole 10.244.1.0/24 proto bird metric 0
}
