package nodeguard

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath/wiring"
)

// TestNeighbours: a pod sends to hundreds of addresses on the node's subnets that nobody
// has. Without the guard each makes an entry in the node's neighbor table; with it, there
// are few, and who answers stays reachable. The kernel's limit is for all namespaces of
// the machine: the test stays below it.
func TestNeighbours(t *testing.T) {
	t.Parallel()
	const flood = 300
	n := newNode(t)
	s := packetSocket(t, n.a.NS)
	scan := func(to netip.Addr) {
		t.Helper()
		for range flood {
			src := n.a.v6
			if to.Is4() {
				src = n.a.v4
			}
			if _, err := unix.Write(s, datagram(n.a.mac, src, to)); err != nil {
				t.Fatal(err)
			}
			to = to.Next()
		}
	}
	ping := func(p *testPod, to ...netip.Addr) {
		t.Helper()
		for _, a := range to {
			p.Exec("ping", "-c1", "-i0.2", "-w20", a.String())
		}
	}
	unresolved := func(network string) (count int) {
		t.Helper()
		for line := range strings.Lines(n.ns.IP("neighbour", "show", "dev", "uplink", "to", network)) {
			if strings.Contains(line, "INCOMPLETE") || strings.Contains(line, "FAILED") {
				count++
			}
		}
		return count
	}

	began := time.Now()
	scan(addr("2001:db8:0:2::1"))
	scan(addr("172.21.1.1"))
	ping(n.a, outside6, outside4) // the packets before have been forwarded
	for _, network := range []string{"2001:db8:0:2::/64", "172.21.1.0/24", "172.21.2.0/24"} {
		if got := unresolved(network); got == 0 {
			t.Errorf("without the guard there is no entry of %s: what is the guard for?", network)
		}
	}

	n.set(t, Desired{OnLink: onLink})
	for _, a := range []netip.Addr{outside6, outside4} {
		ping(n.a, a) // which makes it known
	}
	guarded := time.Now()
	scan(addr("2001:db8:0:3::1"))
	scan(addr("172.21.64.1"))
	for range 3 { // it has nothing left, and those that answer do not need it
		ping(n.a, outside6, outside4)
	}
	took := time.Since(guarded)
	got := unresolved("2001:db8:0:3::/64") + unresolved("172.21.64.0/23")
	if most := podBurst + int(podRate*(took.Seconds()+1)); got == 0 || got > most || took < 2*time.Second && got > flood {
		t.Errorf("the guard let %d of %d new addresses pass in %s, want at most %d", got, 2*flood, took, most)
	}
	t.Logf("of %d new addresses %d made an entry in %s; without the guard all did (%s)", 2*flood, got, took, guarded.Sub(began))
	if d, err := n.Dropped(); err != nil || d.ToNeighbours == 0 {
		t.Errorf("counted: %+v, %v", d, err)
	}

	// Another pod has a limit of its own, and reaches what nobody has sent to before.
	n.outside.IP("address", "add", "2001:db8:0:1::3/62", "dev", "eth0", "nodad")
	n.outside.IP("address", "add", "172.20.0.3/15", "dev", "eth0")
	ping(n.b, addr("2001:db8:0:1::3"), addr("172.20.0.3"))
}

// datagram is a frame to the host end with an empty UDP datagram.
func datagram(mac wiring.MAC, src, dst netip.Addr) []byte {
	f := append(append(wiring.HostMAC[:len(wiring.HostMAC):len(wiring.HostMAC)], mac[:]...), 0x86, 0xdd)
	udp := []byte{0, 9, 0, 9, 0, 8, 0, 0} // its checksum does not matter to who forwards it
	if src.Is6() {
		f = append(f, 0x60, 0, 0, 0, 0, 8, unix.IPPROTO_UDP, 64)
		return append(append(append(f, src.AsSlice()...), dst.AsSlice()...), udp...)
	}
	binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IP)
	header := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	header = append(append(header, src.AsSlice()...), dst.AsSlice()...)
	var sum uint32
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(header[10:], ^uint16(sum))
	return append(append(f, header...), udp...)
}
