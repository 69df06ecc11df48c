package nodeguard

import (
	"strings"
	"testing"

	"flock.fritzlab.net/flock/pkg/pod"
)

func TestCheckHostPorts(t *testing.T) {
	port := func(number uint16, protocol string) pod.HostPort {
		return pod.HostPort{HostPort: number, ContainerPort: 80, Protocol: protocol}
	}
	bgp := Desired{BGPPort: 179}
	for _, c := range []struct {
		name  string
		d     Desired
		ports []pod.HostPort
		want  string // empty: allowed
	}{
		{"none", bgp, nil, ""},
		{"others", bgp, []pod.HostPort{port(80, "tcp"), port(179, "udp"), port(3784, "tcp"), port(178, "tcp")}, ""},
		{"BGP's", bgp, []pod.HostPort{port(80, "tcp"), port(179, "tcp")}, "hostPort 179/tcp is the port of the node's routing daemon (BGP): choose another"},
		{"BFD's", bgp, []pod.HostPort{port(4784, "udp")}, "hostPort 4784/udp is the port of the node's routing daemon (BFD)"},
		{"BGP's elsewhere", Desired{BGPPort: 1790}, []pod.HostPort{port(179, "tcp")}, ""},
		{"BGP's, moved", Desired{BGPPort: 1790}, []pod.HostPort{port(1790, "tcp")}, "hostPort 1790/tcp"},
		{"without BGP", Desired{}, []pod.HostPort{port(179, "tcp")}, ""},
		{"all that a pod may have", bgp, make([]pod.HostPort, MaxHostPorts), ""},
		{"too many", bgp, make([]pod.HostPort, MaxHostPorts+1), "257 host ports: a pod may have 256 at most"},
	} {
		err := c.d.CheckHostPorts(c.ports)
		if (err == nil) != (c.want == "") || err != nil && !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
