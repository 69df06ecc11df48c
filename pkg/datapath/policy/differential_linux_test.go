package policy_test

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/policy"
	"flock.fritzlab.net/flock/pkg/datapath/policy/policytest"
)

func openTable(t testing.TB, ns *nettest.NS) (table *policy.Table) {
	t.Helper()
	ns.Run(func() {
		var err error
		if table, err = policy.Open(policy.DefaultMark); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(table.Close)
	return table
}

// A connection lasts over changes of the policies.
type connection struct {
	packet   policytest.Packet // its first
	fromPort int
	toPort   int
	sport    uint16
}

// A trial is a scene with a kernel under it.
type trial struct {
	*scene
	lab         *lab
	table       *policy.Table
	sport       uint16
	connections []*connection
	probes      int
	counts      policy.Counts // as of the last look
}

const slots = 8

func newTrial(t *testing.T, m policytest.Maker) *trial {
	s := newScene(m)
	s.slots = slots
	l := newLab(t, slots, policytest.PodAddrs)
	return &trial{scene: s, lab: l, table: openTable(t, l.node), sport: 20000}
}

// port is where a pod's packets enter and leave the node.
func port(p *policy.Pod) int {
	if p == nil || len(p.Links) == 0 {
		return uplink
	}
	for i := range slots {
		if slotLink(i) == p.Links[0] {
			return firstSlot + i
		}
	}
	panic("a link without slot " + p.Links[0])
}

func (tr *trial) newPort() uint16 {
	if tr.sport++; tr.sport < 20000 {
		tr.sport = 20000
	}
	return tr.sport
}

// probePacket makes one between two different ports of the node.
func (tr *trial) probePacket() policytest.Packet {
	for {
		p, _, _ := tr.packet()
		if slices.Contains(policytest.PodAddrs(anycast), p.Dst) {
			continue // which of the pods gets it is not policies' business
		}
		if p.Protocol == 47 && p.Src.Compare(p.Dst) > 0 {
			continue // without ports, it may be a reply to an earlier one
		}
		if port(p.From) != port(p.To) {
			return p
		}
	}
}

type expectation struct {
	tag  uint64
	port int
	want bool
	what string
}

func (tr *trial) verify(t *testing.T, expected []expectation) {
	t.Helper()
	came := tr.lab.settled()
	for _, e := range expected {
		tr.probes++
		if at, passed := came[e.tag]; passed != e.want || passed && at != e.port {
			t.Errorf("%s: passes %v (at port %d), want %v at port %d", e.what, passed, at, e.want, e.port)
		}
	}
	if t.Failed() {
		t.Fatal(tr.lab.node.Exec("nft", "list", "table", "inet", "flock-policy"))
	}
}

// probe sends packets of new connections, odd ones among them.
func (tr *trial) probe(t *testing.T, n int) {
	t.Helper()
	var expected []expectation
	for range n {
		p := tr.probePacket()
		s := segment{src: p.Src, dst: p.Dst, proto: p.Protocol, sport: tr.newPort(), dport: p.Port, flags: syn}
		switch p.Protocol {
		case unix.IPPROTO_TCP:
			s.flags = []byte{syn, syn, syn, 0, syn | fin, rst, ackFlag, fin | push | 32, rst | ackFlag}[tr.m.IntN(9)]
		case unix.IPPROTO_UDP:
			s.fragments = tr.m.IntN(4) == 0
		}
		want := policytest.Allowed(&tr.World, p)
		expected = append(expected, expectation{tr.lab.send(port(p.From), s), port(p.To), want, fmt.Sprintf("probe %+v", s)})
	}
	tr.verify(t, expected)
}

func (c *connection) segment(reply bool, flags byte, seq, ack uint32) segment {
	s := segment{src: c.packet.Src, dst: c.packet.Dst, proto: c.packet.Protocol, sport: c.sport, dport: c.packet.Port, flags: flags, seq: seq, ack: ack}
	if reply {
		s.src, s.dst, s.sport, s.dport = s.dst, s.src, s.dport, s.sport
	}
	return s
}

// connect opens connections that are allowed.
func (tr *trial) connect(t *testing.T, n int) {
	t.Helper()
	var expected []expectation
	for range 20 * n {
		p := tr.probePacket()
		if slices.Contains(policytest.PodAddrs(anycast), p.Src) {
			continue // replies may go to another pod
		}
		if (p.Protocol != unix.IPPROTO_TCP && p.Protocol != unix.IPPROTO_UDP) || !policytest.Allowed(&tr.World, p) {
			continue
		}
		c := &connection{packet: p, fromPort: port(p.From), toPort: port(p.To), sport: tr.newPort()}
		hello := []struct {
			reply    bool
			flags    byte
			seq, ack uint32
		}{{false, syn, 1000, 0}, {true, syn | ackFlag, 5000, 1001}, {false, ackFlag, 1001, 5001}}
		for _, h := range hello {
			s := c.segment(h.reply, h.flags, h.seq, h.ack)
			s.empty = p.Protocol == unix.IPPROTO_TCP
			from := c.fromPort
			if h.reply {
				from = c.toPort
			}
			tr.lab.send(from, s)
		}
		tr.connections = append(tr.connections, c)
		if n--; n == 0 {
			break
		}
	}
	tr.verify(t, expected)
}

// converse sends in both directions of each connection: it passes if the policies of
// now allow the connection, whatever they were when it began.
func (tr *trial) converse(t *testing.T) {
	t.Helper()
	tr.connections = slices.DeleteFunc(tr.connections, func(c *connection) bool { return !tr.refresh(c) })
	var expected []expectation
	for _, c := range tr.connections {
		want := policytest.Allowed(&tr.World, c.packet)
		there, back := c.segment(false, push|ackFlag, 1001, 5001), c.segment(true, push|ackFlag, 5001, 1001)
		if tr.m.IntN(2) == 0 {
			expected = append(expected, expectation{tr.lab.send(c.fromPort, there), c.toPort, want, fmt.Sprintf("connection's %+v", there)})
		}
		expected = append(expected, expectation{tr.lab.send(c.toPort, back), c.fromPort, want, fmt.Sprintf("connection's reply %+v", back)})
	}
	tr.verify(t, expected)
	for len(tr.connections) > 40 {
		tr.connections = slices.Delete(tr.connections, 0, 1)
	}
}

// refresh takes in what the connection's ends are now, if they are still there.
func (tr *trial) refresh(c *connection) bool {
	find := func(p *policy.Pod, a netip.Addr) (*policy.Pod, bool) {
		if p == nil {
			// What was no pod of this node may be one now.
			return nil, !slices.ContainsFunc(tr.Pods, func(q *policy.Pod) bool { return len(q.Links) > 0 && slices.Contains(q.Addrs[:2], a) })
		}
		i := slices.IndexFunc(tr.Pods, func(q *policy.Pod) bool { return q.UID == p.UID })
		if i < 0 || !slices.Contains(tr.Pods[i].Addrs, a) {
			return nil, false
		}
		return tr.Pods[i], true
	}
	var from, to bool
	c.packet.From, from = find(c.packet.From, c.packet.Src)
	c.packet.To, to = find(c.packet.To, c.packet.Dst)
	return from && to
}

func (tr *trial) apply(t *testing.T) {
	t.Helper()
	change := tr.x.Flush()
	if err := tr.table.Apply(tr.x.Ruleset(), change); err != nil {
		t.Fatal(err)
	}
	if len(tr.x.Ruleset().Links) == 0 {
		// Nobody tracks connections now. Those that begin may get the wrong direction
		// later.
		tr.connections = nil
	}
}

// The kernel decides as the reference does, in random worlds, about packets of every
// kind; and about connections that outlast changes, from the moment on that a change
// is in force. FLOCK_POLICY_PROBES is how many packets are judged.
func TestDifferential(t *testing.T) {
	m := maker(t)
	want := 3000
	if env := os.Getenv("FLOCK_POLICY_PROBES"); env != "" {
		var err error
		if want, err = strconv.Atoi(env); err != nil {
			t.Fatal(err)
		}
	}
	probes, changes := 0, 0
	began := time.Now()
	for worlds := 0; probes < want; worlds++ {
		t.Run(fmt.Sprint("world", worlds), func(t *testing.T) {
			tr := newTrial(t, m)
			for range slots - 2 {
				tr.addPod(true)
			}
			for range 6 {
				tr.addPod(false)
			}
			tr.fill()
			tr.apply(t)
			for range 60 {
				for range 1 + m.IntN(2) {
					tr.change()
				}
				changes++
				tr.apply(t)
				tr.converse(t)
				tr.probe(t, 15)
				if len(tr.x.Ruleset().Links) > 0 {
					tr.connect(t, 3)
				}
			}
			if repairs, err := tr.table.Sync(tr.x.Ruleset(), func() {}); err != nil || len(repairs) > 0 {
				t.Errorf("repairs %v, %v; want none", repairs, err)
			}
			probes += tr.probes
		})
		if t.Failed() {
			return
		}
	}
	t.Logf("%d packets and %d changes in %s", probes, changes, time.Since(began).Round(time.Millisecond))
}

// Changes go on while Sync takes one set after the other, and Sync does not undo them.
func TestSyncAmidChanges(t *testing.T) {
	ns := nettest.New(t)
	table := openTable(t, ns)
	s := newScene(maker(t))
	filled := func() bool {
		for _, set := range s.x.Ruleset().Sets {
			if set.Len() > 0 {
				return true
			}
		}
		return false
	}
	for i := 0; i < 12 || !filled(); i++ {
		s.addPod(s.m.IntN(2) == 0)
		s.addPolicy()
		s.fill()
		s.x.Flush()
	}
	apply := func() {
		t.Helper()
		if err := table.Apply(s.x.Ruleset(), s.x.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	apply()
	repaired, changed := 0, 0
	for i := 0; i < 12 || i < 200 && (repaired == 0 || changed == 0); i++ {
		for name, set := range s.x.Ruleset().Sets {
			if set.Len() > 0 {
				ns.Exec("nft", "flush set inet flock-policy "+name)
				break
			}
		}
		repairs, err := table.Sync(s.x.Ruleset(), func() {
			if s.m.IntN(4) == 0 {
				s.change()
				apply()
				changed++
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		repaired += len(repairs)
		for _, agent := range []*policy.Table{table, openTable(t, ns)} {
			if repairs, err := agent.Sync(s.x.Ruleset(), func() {}); err != nil || len(repairs) > 0 {
				t.Fatalf("a Sync after a Sync repairs %v, %v", repairs, err)
			}
		}
	}
	if repaired == 0 || changed == 0 {
		t.Errorf("%d repairs and %d changes, want some", repaired, changed)
	}
}
