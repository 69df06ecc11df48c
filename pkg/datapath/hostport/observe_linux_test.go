package hostport

import (
	"net/netip"
	"reflect"
	"testing"

	"flock.fritzlab.net/flock/pkg/pod"
)

// What the kernel forwards is all that is needed to forward the same again.
func TestObserved(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	if got, err := f.ports.Observed(); err != nil || len(got) != 0 {
		t.Errorf("without a table: %v, %v", got, err)
	}
	f.node.IP("link", "add", "flock00000001", "type", "veth", "peer", "name", "peer")
	a := netip.MustParseAddr
	bound := Binding{
		HostIf: "flock00000001", Addrs: []netip.Addr{a("2001:db8:100::7"), a("10.244.0.7")},
		Ports: []pod.HostPort{
			{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"},
			{HostPort: 53, ContainerPort: 5353, Protocol: "udp"},
			{HostPort: 443, ContainerPort: 8443, Protocol: "tcp", HostIP: a(node4)},
			{HostPort: 444, ContainerPort: 8443, Protocol: "sctp", HostIP: a(node6)},
			{HostPort: 445, ContainerPort: 445, Protocol: "tcp", HostIP: a("0.0.0.0")},
		},
	}
	if err := f.ports.Set(bound); err != nil {
		t.Fatal(err)
	}
	got, err := f.ports.Observed()
	if err != nil {
		t.Fatal(err)
	}
	again := Binding{HostIf: bound.HostIf, Addrs: bound.Addrs}
	for _, addr := range bound.Addrs {
		again.Ports = append(again.Ports, got[addr]...)
	}
	if want := desired([]Binding{bound}); !reflect.DeepEqual(desired([]Binding{again}), want) || len(got) != 2 {
		t.Errorf("observed %v, which is not what was set", got)
	}
}
