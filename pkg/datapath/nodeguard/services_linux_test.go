package nodeguard

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath/wiring"
)

// TestServices: what a pod reaches of the node, at every address that leads there.
func TestServices(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	eth0 := n.a.zone(t)
	const bgp, other = "179", "6443"
	for _, port := range []string{bgp, other} {
		listen(t, n.ns, port)
		listen(t, n.outside, port)
		listen(t, n.b.NS, port)
	}
	// As kube-proxy does for Services whose endpoints are on the host network.
	n.nft(t, `table inet proxy {
		chain prerouting {
			type nat hook prerouting priority dstnat;
			ip6 daddr 2001:db8:5e::179 tcp dport 80 dnat ip6 to [`+node6.String()+`]:179
			ip daddr 198.51.100.179 tcp dport 80 dnat ip to `+node4.String()+`:179
			ip6 daddr 2001:db8:5e::43 tcp dport 443 dnat ip6 to [`+node6.String()+`]:6443
			ip daddr 198.51.100.43 tcp dport 443 dnat ip to `+node4.String()+`:6443
		}
	}`)
	reaches := map[string]bool{
		"[" + node6.String() + "]:" + bgp: false, node4.String() + ":" + bgp: false,
		"[fe80::1%" + eth0 + "]:" + bgp: false, "[2001:db8:5e::179]:80": false, "198.51.100.179:80": false,
		"[fe80::1%" + eth0 + "]:" + other:   false,
		"[" + node6.String() + "]:" + other: true, node4.String() + ":" + other: true,
		"[2001:db8:5e::43]:443": true, "198.51.100.43:443": true,
		// BGP is closed at the node, not elsewhere.
		"[" + outside6.String() + "]:" + bgp: true, outside4.String() + ":" + bgp: true,
		"[" + n.b.v6.String() + "]:" + bgp: true, n.b.v4.String() + ":" + bgp: true,
	}
	for to := range reaches { // without the guard there is nothing that a pod does not reach
		if answer, err := dial(t, n.a.NS, to); answer != "hello" {
			t.Errorf("without the guard: %s answers %q, %v", to, answer, err)
		}
	}
	n.set(t, Desired{OnLink: onLink, BGPPort: 179})
	for to, want := range reaches {
		answer, err := dial(t, n.a.NS, to)
		if want && answer != "hello" || !want && err == nil {
			t.Errorf("%s answers %q, %v; want an answer: %t", to, answer, err, want)
		}
		if !want && !errors.Is(err, syscall.EACCES) && !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v, want to be refused at once", to, err)
		}
	}
	for _, to := range []string{"[" + node6.String() + "]:" + bgp, node4.String() + ":" + bgp} {
		if answer, err := dial(t, n.outside, to); answer != "hello" {
			t.Errorf("from outside %s answers %q, %v", to, answer, err)
		}
		if answer, err := dial(t, n.ns, to); answer != "hello" {
			t.Errorf("on the node %s answers %q, %v", to, answer, err)
		}
	}
	n.a.Exec("ping", "-c1", "-W10", "fe80::1%eth0")
	n.a.Exec("ping", "-c1", "-W10", node6.String())
	n.a.Exec("ping", "-c1", "-W10", node4.String())

	// Another port is BGP's, or none is.
	n.set(t, Desired{OnLink: onLink, BGPPort: 6443})
	if answer, err := dial(t, n.a.NS, "["+node6.String()+"]:"+bgp); answer != "hello" {
		t.Errorf("port 179, which is not BGP's: %q, %v", answer, err)
	}
	if _, err := dial(t, n.a.NS, "["+node6.String()+"]:"+other); err == nil {
		t.Error("port 6443, which is BGP's, answers")
	}
	if d, err := n.Dropped(); err != nil || d.ToNode == 0 {
		t.Errorf("counted: %+v, %v", d, err)
	}
}

// TestDatagrams: UDP to what listens on all addresses of the node, and OSPF.
func TestDatagrams(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.set(t, Desired{OnLink: onLink, BGPPort: 179})
	eth0 := n.a.zone(t)
	received := map[string]chan string{}
	open := func(name, network, address string) {
		in := make(chan string, 1000)
		received[name] = in
		n.ns.Run(func() {
			c, err := net.ListenPacket(network, address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			go func() {
				b := make([]byte, 100)
				for {
					k, _, err := c.ReadFrom(b)
					if err != nil {
						return
					}
					if network == "ip4:89" {
						in <- string(b[k-len("x") : k])
					} else {
						in <- string(b[:k])
					}
				}
			}()
		})
	}
	for _, port := range []string{"53", "3784", "3785", "4784"} {
		open(port, "udp", "[::]:"+port)
	}
	open("ospf6", "ip6:89", "::")
	open("ospf4", "ip4:89", "0.0.0.0")
	n.a.Run(func() {
		send := func(network, to, text string) {
			c, err := net.Dial(network, to)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.Write([]byte(text)) // an error is that of the packet before
		}
		for _, port := range []string{"53", "3784", "3785", "4784"} {
			for _, host := range []string{"fe80::1%" + eth0, "ff02::1%" + eth0, "ff02::5%" + eth0, node6.String(), node4.String(), "224.0.0.1", "224.0.0.5", "172.21.255.255"} {
				send("udp", net.JoinHostPort(host, port), host)
			}
		}
		for _, host := range []string{"fe80::1%" + eth0, "ff02::5%" + eth0, node6.String()} {
			send("ip6:89", host, "x")
		}
		for _, host := range []string{"224.0.0.5", node4.String()} {
			send("ip4:89", host, "x")
		}
		// What comes last is let pass.
		send("udp", net.JoinHostPort(node6.String(), "53"), "last")
	})
	var got []string
	for text := ""; text != "last"; {
		select {
		case text = <-received["53"]:
			got = append(got, text)
		case <-time.After(20 * time.Second):
			t.Fatal("the last datagram did not come")
		}
	}
	slices.Sort(got)
	if want := []string{node4.String(), node6.String(), "last"}; !slices.Equal(got, want) {
		t.Errorf("DNS on the node received what was sent to %v, want %v", got, want)
	}
	for name, in := range received {
		if name != "53" && len(in) > 0 {
			t.Errorf("%s: %q came", name, <-in)
		}
	}
}

// TestFragments: a connection to BGP's port, of which the port is hidden in fragments,
// gets no answer.
func TestFragments(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.set(t, Desired{OnLink: onLink, BGPPort: 179})
	listen(t, n.ns, "179")
	listen(t, n.ns, "6443")
	s := packetSocket(t, n.a.NS)
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}); err != nil {
		t.Fatal(err)
	}
	source := uint16(40000)
	shapes := map[string]func(port uint16) [][]byte{
		"whole":            func(port uint16) [][]byte { return n.syn(source, port, 0, 0) },
		"one fragment":     func(port uint16) [][]byte { return n.syn(source, port, 0, 64) },
		"the header first": func(port uint16) [][]byte { return n.syn(source, port, 0, 24) },
		"the header last":  func(port uint16) [][]byte { f := n.syn(source, port, 0, 24); slices.Reverse(f); return f },
		"behind options":   func(port uint16) [][]byte { return n.syn(source, port, 8, 32) },
		// These the kernel drops since 5.11 (RFC 8200 section 4.5: all headers are first).
		"8 bytes first":      func(port uint16) [][]byte { return n.syn(source, port, 0, 8) },
		"16 bytes first":     func(port uint16) [][]byte { return n.syn(source, port, 0, 16) },
		"8 bytes last":       func(port uint16) [][]byte { f := n.syn(source, port, 0, 8); slices.Reverse(f); return f },
		"options, 8 first":   func(port uint16) [][]byte { return n.syn(source, port, 8, 16) },
		"options alone":      func(port uint16) [][]byte { return n.syn(source, port, 8, 8) },
		"options alone last": func(port uint16) [][]byte { f := n.syn(source, port, 8, 8); slices.Reverse(f); return f },
	}
	answeredOther := 0
	for name, shape := range shapes {
		source++
		for _, f := range shape(179) {
			if _, err := unix.Write(s, f); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range shape(6443) {
			if _, err := unix.Write(s, f); err != nil {
				t.Fatal(err)
			}
		}
		source++
		for _, f := range n.syn(source, 6443, 0, 0) { // the end of this shape
			if _, err := unix.Write(s, f); err != nil {
				t.Fatal(err)
			}
		}
		in := make([]byte, 2048)
		for done := false; !done; {
			k, err := unix.Read(s, in)
			if err != nil {
				t.Fatalf("%s: no answer from port 6443: %v", name, os.NewSyscallError("read", err))
			}
			// SYN and ACK from the node
			if f := in[:k]; k >= 14+40+20 && f[12] == 0x86 && f[14+6] == unix.IPPROTO_TCP && f[14+40+13]&0x12 == 0x12 {
				from, to := binary.BigEndian.Uint16(f[14+40:]), binary.BigEndian.Uint16(f[14+40+2:])
				switch {
				case from == 179:
					t.Errorf("%s: port 179 answers", name)
				case from == 6443 && to == source:
					done = true
				case from == 6443 && name != "whole":
					answeredOther++
				}
			}
		}
	}
	if answeredOther < 3 {
		t.Errorf("of the fragmented connections to port 6443 only %d were answered: are the fragments right?", answeredOther)
	}
}

// syn is a TCP SYN to the node behind that many bytes of options, in fragments of which the
// first has that many bytes; 0 is no fragment.
func (n *testNode) syn(from, to uint16, options, first int) [][]byte {
	src, dst := n.a.v6, node6
	tcp := binary.BigEndian.AppendUint16(nil, from)
	tcp = binary.BigEndian.AppendUint16(tcp, to)
	tcp = append(tcp, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, 2 /* SYN */, 0xff, 0xff, 0, 0, 0, 0)
	tcp = append(tcp, "data that may be ignored"...)
	pseudo := append(append(src.AsSlice(), dst.AsSlice()...), 0, 0, 0, byte(len(tcp)), 0, 0, 0, unix.IPPROTO_TCP)
	var sum uint32
	all := append(pseudo, tcp...)
	for i := 0; i < len(all); i += 2 {
		sum += uint32(all[i])<<8 | uint32(all[i+1])
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(tcp[16:], ^uint16(sum))
	payload, next := tcp, byte(unix.IPPROTO_TCP)
	if options > 0 {
		payload, next = append([]byte{unix.IPPROTO_TCP, 0, 1, 4, 0, 0, 0, 0}, tcp...), 60 // destination options, padding
	}
	frame := func(next byte, payload []byte) []byte {
		f := append(append(wiring.HostMAC[:len(wiring.HostMAC):len(wiring.HostMAC)], n.a.mac[:]...), 0x86, 0xdd)
		f = append(f, 0x60, 0, 0, 0, byte(len(payload)>>8), byte(len(payload)), next, 64)
		f = append(append(f, src.AsSlice()...), dst.AsSlice()...)
		return append(f, payload...)
	}
	if first == 0 {
		return [][]byte{frame(next, payload)}
	}
	var frames [][]byte
	for at := 0; at < len(payload); {
		end := min(at+first, len(payload))
		if at > 0 {
			end = len(payload)
		}
		field := uint16(at)
		if end < len(payload) {
			field |= 1
		}
		header := binary.BigEndian.AppendUint16([]byte{next, 0}, field)
		header = append(header, byte(from>>8), byte(from), byte(to>>8), byte(to)) // identification
		frames = append(frames, frame(44, append(header, payload[at:end]...)))
		at = end
	}
	return frames
}

func (n *testNode) nft(t *testing.T, ruleset string) {
	t.Helper()
	f := t.TempDir() + "/ruleset.nft"
	if err := os.WriteFile(f, []byte(ruleset), 0o600); err != nil {
		t.Fatal(err)
	}
	n.ns.Exec("nft", "-f", f)
}
