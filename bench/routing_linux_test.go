package bench

import (
	"context"
	"encoding/binary"
	"io"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/fabric"
)

// reflect answers datagrams in the namespace while silent is false.
func reflect(t *testing.T, ns *netNS, addr string) (silent *atomic.Bool) {
	t.Helper()
	var server *net.UDPConn
	err := ns.Do(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), cluster.EchoPort)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	silent = new(atomic.Bool)
	go func() {
		b := make([]byte, 64)
		for {
			n, from, err := server.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if !silent.Load() {
				_, _ = server.WriteToUDPAddrPort(b[:n], from)
			}
		}
	}()
	return silent
}

// Packets that are not answered are lost, and the report says when; those of other
// streams are not.
func TestStreams(t *testing.T) {
	ns := netNSFor(t)
	silent := reflect(t, ns, "127.0.0.1")
	reflect(t, ns, "::1")
	ctx, cancel := context.WithCancel(t.Context())
	said, saying := io.Pipe()
	type outcome struct {
		reports []streamReport
		err     error
	}
	ended := make(chan outcome, 1)
	go func() {
		reports, err := sendStreams(ctx, streamsInput{Every: time.Millisecond, Streams: []stream{
			{Name: "four", NetNS: ns.Path(), To: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), cluster.EchoPort), Flows: 3},
			{Name: "six", NetNS: ns.Path(), To: netip.AddrPortFrom(netip.IPv6Loopback(), cluster.EchoPort), Flows: 1},
		}}, saying)
		saying.Close()
		ended <- outcome{reports, err}
	}()
	if line := must(io.ReadAll(io.LimitReader(said, int64(len(flowingLine))+1))); strings.TrimSpace(string(line)) != flowingLine {
		t.Fatalf("said %q", line)
	}
	began := monotonic()
	silent.Store(true)
	time.Sleep(20 * time.Millisecond) // the silence
	silent.Store(false)
	back := monotonic()
	time.Sleep(20 * time.Millisecond) // answered again
	cancel()
	end := monotonic()
	out := <-ended
	if out.err != nil {
		t.Fatal(out.err)
	}
	four, six := out.reports[0], out.reports[1]
	if four.Lost < 10 || four.FirstLost < began-int64(10*time.Millisecond) || four.LastLost > back+int64(10*time.Millisecond) || four.Recovered < four.LastLost || four.Recovered > end {
		t.Errorf("%+v: want some 20 lost since %d until %d, and one that was answered after it", four, began, back)
	}
	if six.Lost != 0 || six.LastLost != 0 || six.Recovered == 0 || six.Sent < 40 || six.Due < six.Sent || six.Due != four.Due {
		t.Errorf("%+v: want nothing lost", six)
	}
}

func TestStreamToNobody(t *testing.T) {
	ns := netNSFor(t)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	reports, err := sendStreams(ctx, streamsInput{Every: time.Millisecond, Streams: []stream{
		{Name: "void", NetNS: ns.Path(), To: netip.MustParseAddrPort("[2001:db8::1]:8080"), Flows: 1},
	}}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "void: 0 of 1 flows answered") {
		t.Errorf("%+v, %v", reports, err)
	}
}

func TestStreamReport(t *testing.T) {
	for _, c := range []struct {
		name    string
		sent    []int64 // by sequence number
		answers []answered
		want    streamReport
	}{
		{"nothing was sent since", []int64{1, 2, 3}, nil, streamReport{}},
		{"all came back", []int64{1, 20, 30}, []answered{{1, 25}, {2, 35}}, streamReport{Due: 2, Sent: 2, Recovered: 25}},
		{"one was not sent in time", []int64{20, 0, 40}, []answered{{0, 21}, {2, 41}}, streamReport{Due: 3, Sent: 2, Recovered: 21}},
		{"some were lost", []int64{20, 30, 40, 50, 60}, []answered{{0, 21}, {2, 41}, {4, 61}},
			streamReport{Due: 5, Sent: 5, Lost: 2, FirstLost: 30, LastLost: 50, Recovered: 61}},
		{"the end was lost", []int64{20, 30}, []answered{{0, 21}}, streamReport{Due: 2, Sent: 2, Lost: 1, FirstLost: 30, LastLost: 30}},
		{"one came twice, in another order", []int64{20, 30, 40}, []answered{{2, 41}, {1, 42}, {1, 43}},
			streamReport{Due: 3, Sent: 3, Lost: 1, FirstLost: 20, LastLost: 20, Recovered: 41}},
	} {
		s := streaming{sent: c.sent, answers: c.answers}
		if got := s.report(10); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// frame is an Ethernet frame with a TCP segment from BGP's port.
func frame(ethertype uint16, port uint16, payload ...byte) []byte {
	tcp := make([]byte, 24) // with an option
	binary.BigEndian.PutUint16(tcp, port)
	tcp[12] = 6 << 4
	tcp = append(tcp, payload...)
	var header []byte
	if ethertype == unix.ETH_P_IPV6 {
		header = make([]byte, 40)
		binary.BigEndian.PutUint16(header[4:], uint16(len(tcp)))
		header[6] = unix.IPPROTO_TCP
	} else {
		header = make([]byte, 20)
		header[0], header[9] = 0x45, unix.IPPROTO_TCP
		binary.BigEndian.PutUint16(header[2:], uint16(len(header)+len(tcp)))
	}
	f := append(binary.BigEndian.AppendUint16(make([]byte, 12), ethertype), header...)
	return append(append(f, tcp...), 0, 0, 0) // short frames are padded
}

// message is one of BGP's.
func message(typ byte, body ...byte) []byte {
	m := binary.BigEndian.AppendUint16(append([]byte(nil), bgpMarker...), uint16(19+len(body)))
	return append(append(m, typ), body...)
}

func TestBGPMessages(t *testing.T) {
	keepalive, update := message(4), message(2, 0, 0, 0, 0)
	for _, c := range []struct {
		name  string
		frame []byte
		want  bgpMessages
	}{
		{"keepalive, IPv6", frame(unix.ETH_P_IPV6, bgpPort, keepalive...), bgpMessages{4: 1}},
		{"keepalive, IPv4", frame(unix.ETH_P_IP, bgpPort, keepalive...), bgpMessages{4: 1}},
		{"several", frame(unix.ETH_P_IPV6, bgpPort, append(append(append([]byte(nil), update...), keepalive...), update...)...), bgpMessages{2: 2, 4: 1}},
		{"acknowledgement", frame(unix.ETH_P_IP, bgpPort), bgpMessages{}},
		{"begins amidst a message", frame(unix.ETH_P_IP, bgpPort, update[3:]...), bgpMessages{bgpUnknown: 1}},
		{"cut off", frame(unix.ETH_P_IP, bgpPort, update[:20]...), bgpMessages{2: 1}},
		{"length of nothing", frame(unix.ETH_P_IP, bgpPort, append(append([]byte(nil), bgpMarker...), 0, 0, 4)...), bgpMessages{4: 1}},
		{"another port", frame(unix.ETH_P_IPV6, 6443, keepalive...), bgpMessages{}},
		{"no IP", make([]byte, 60), bgpMessages{}},
		{"short", frame(unix.ETH_P_IPV6, bgpPort, keepalive...)[:40], bgpMessages{}},
		{"shorter", nil, bgpMessages{}},
	} {
		got := bgpMessages{}
		got.add(bgpPayload(c.frame))
		if !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	if n := (bgpMessages{2: 3, 4: 100, 5: 1, bgpUnknown: 1}).news(); n != 5 {
		t.Errorf("%d messages that are no keepalives, want 5", n)
	}
}

func FuzzBGPPayload(f *testing.F) {
	f.Add(frame(unix.ETH_P_IPV6, bgpPort, message(4)...))
	f.Add(frame(unix.ETH_P_IP, bgpPort, message(2, 1, 2)...))
	f.Fuzz(func(t *testing.T, frame []byte) {
		bgpMessages{}.add(bgpPayload(frame))
	})
}

// The capture sees both directions of an interface, TCP alone.
func TestCapture(t *testing.T) {
	ns := netNSFor(t)
	fd, err := listenTCP(ns.Path(), "lo")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := &capture{cancel, make(chan error, 1), bgpMessages{}}
	go func() { c.done <- c.read(ctx, fd) }()
	err = ns.Do(func() error {
		l, err := net.Listen("tcp", "[::1]:179")
		if err != nil {
			return err
		}
		defer l.Close()
		// Dialled on this thread: the address needs no resolver.
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write(message(1)); err != nil {
			return err
		}
		peer, err := l.Accept()
		if err != nil {
			return err
		}
		defer peer.Close()
		if _, err := peer.Write(message(4)); err != nil {
			return err
		}
		_, err = io.ReadFull(conn, make([]byte, 19))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	seen, err := c.stop()
	if err != nil {
		t.Fatal(err)
	}
	// On the loopback each passes twice: going and coming.
	if want := (bgpMessages{1: 2, 4: 2}); !maps.Equal(seen, want) {
		t.Errorf("saw %v, want %v", seen, want)
	}
}

func TestBFDUp(t *testing.T) {
	const said = `BIRD 2.0.12 ready.
bfd1:
IP address                Interface  State      Since         Interval  Timeout
2001:db8:0:1::11          lan        Up         01:00:00.000    0.100    0.300
192.0.2.12                lan        Down       01:00:00.000    1.000    0.000
`
	for addr, want := range map[string]bool{"2001:db8:0:1::11": true, "192.0.2.12": false, "2001:db8:0:1::1": false} {
		if got := bfdUp(said, addr); got != want {
			t.Errorf("%s: up: %t, want %t", addr, got, want)
		}
	}
}

func TestRoutingNeedsBGP(t *testing.T) {
	for want, settings := range map[string]cluster.Settings{
		"--cni flock":   {CNI: cluster.PTP},
		"--routing bgp": {CNI: cluster.Flock, Routing: fabric.OSPF},
	} {
		for _, b := range []Bench{routingNodefail, routingRestart} {
			_, err := b.Run(t.Context(), &cluster.Lab{Settings: settings}, 1)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s in a lab with %+v: %v", b.Name, settings, err)
			}
		}
	}
}
