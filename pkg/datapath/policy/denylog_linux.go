package policy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/nflog"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// A DenyLog writes a line for each connection that policies deny, of the packets that
// the table's rules log.
type DenyLog struct {
	packets *nflog.Log
	links   *rtnl.Conn
	e       *Enforcer
	out     *slog.Logger

	queue chan deniedPacket
	// seen is when a connection was last logged: its packets come again and again.
	seen map[deniedPacket]time.Time
}

const (
	// repeatAfter is how long a connection is not logged again.
	repeatAfter = time.Minute
	// maxSeen bounds what is remembered of connections.
	maxSeen = 4096
	// logDelay is how long a line may wait for others, so that one look at the pods
	// is for all of them.
	logDelay = 100 * time.Millisecond
)

// deniedPacket is what is logged of a packet. Source and destination are those of the
// packet.
type deniedPacket struct {
	chain        string
	link         string // of the pod whose policies deny it
	toNode       bool
	src, dst     netip.Addr
	proto        uint8
	sport, dport uint16
}

// OpenDenyLog takes the log's group in the calling thread's network namespace. Nothing is
// read before Run.
func OpenDenyLog(e *Enforcer, out *slog.Logger) (*DenyLog, error) {
	packets, err := nflog.Open(kernel.PolicyLogGroup, logBytes)
	if err != nil {
		return nil, err
	}
	links, err := rtnl.Dial()
	if err != nil {
		packets.Close()
		return nil, err
	}
	return &DenyLog{packets: packets, links: links, e: e, out: out, queue: make(chan deniedPacket, 1024), seen: map[deniedPacket]time.Time{}}, nil
}

// Close gives the group up.
func (d *DenyLog) Close() {
	d.packets.Close()
	d.links.Close()
}

// Run writes lines until ctx ends, which is no error.
func (d *DenyLog) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); d.write(ctx) }()
	defer func() { cancel(); <-done }()
	return d.packets.Run(ctx, d.take, func() {})
}

// take queues a packet. What does not fit is not logged.
func (d *DenyLog) take(p nflog.Packet) {
	out, err := parsePacket(p.Payload)
	if err != nil {
		return
	}
	out.chain, out.toNode = p.Prefix, p.Out == 0
	index := p.In
	if p.Prefix == denyToPod.Name || p.Prefix == denyReplyToPod.Name {
		index = p.Out
	}
	link, err := d.links.LinkByIndex(index)
	if err != nil {
		return // it has just gone
	}
	out.link = link.Name
	select {
	case d.queue <- out:
	default:
	}
}

func (d *DenyLog) write(ctx context.Context) {
	for {
		var batch []deniedPacket
		select {
		case <-ctx.Done():
			return
		case p := <-d.queue:
			batch = append(batch, p)
		}
		timer := time.NewTimer(logDelay)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return
			case p := <-d.queue:
				batch = append(batch, p)
			case <-timer.C:
				waiting = false
			}
		}
		d.log(ctx, slices.DeleteFunc(batch, func(p deniedPacket) bool { return !d.isNew(p, time.Now()) }))
	}
}

// isNew says whether a connection was not logged lately.
func (d *DenyLog) isNew(p deniedPacket, now time.Time) bool {
	if last, seen := d.seen[p]; seen && now.Sub(last) < repeatAfter {
		return false
	}
	if len(d.seen) >= maxSeen {
		for p, last := range d.seen {
			if now.Sub(last) >= repeatAfter || len(d.seen) >= maxSeen {
				delete(d.seen, p)
			}
		}
	}
	d.seen[p] = now
	return true
}

// log writes lines with the reasons as they are now.
func (d *DenyLog) log(ctx context.Context, batch []deniedPacket) {
	if len(batch) == 0 {
		return
	}
	lines := make([][]any, len(batch))
	if err := d.e.ask(ctx, func() {
		byLink := map[string]*pod{}
		for p := range d.e.index.localPods(&group{subject: *everyPod}) {
			for _, l := range p.Links {
				byLink[l] = p
			}
		}
		questions := make([]Question, len(batch))
		var addrs []netip.Addr
		for i, b := range batch {
			questions[i] = b.question(byLink[b.link])
			addrs = append(addrs, questions[i].Peer)
		}
		holders := d.e.index.Holders(addrs...)
		for i, v := range d.e.index.Explain(questions...) {
			if p := byLink[batch[i].link]; p != nil {
				lines[i] = batch[i].line(p, questions[i], holders[questions[i].Peer], v)
			}
		}
	}); err != nil {
		return
	}
	for _, l := range lines {
		if l != nil {
			d.out.Info("network policy denied a connection", l...)
		}
	}
}

// reply says that the packet answers to the peer's, or to the pod's.
func (p deniedPacket) reply() bool {
	return p.chain == denyReplyFromPod.Name || p.chain == denyReplyToPod.Name
}

func (p deniedPacket) direction() Direction {
	if p.chain == denyToPod.Name || p.chain == denyReplyFromPod.Name {
		return Ingress
	}
	return Egress
}

// ends are the connection's ends.
func (p deniedPacket) ends() (client, server netip.AddrPort) {
	client, server = netip.AddrPortFrom(p.src, p.sport), netip.AddrPortFrom(p.dst, p.dport)
	if p.reply() {
		client, server = server, client
	}
	return client, server
}

func (p deniedPacket) question(of *pod) Question {
	client, server := p.ends()
	q := Question{Direction: p.direction(), Peer: client.Addr(), Protocol: p.proto, Port: server.Port()}
	if q.Direction == Egress {
		q.Peer = server.Addr()
		q.ToNode = p.toNode
	}
	if of != nil {
		q.Namespace, q.Name, q.UID = of.Namespace, of.Name, of.UID
	}
	return q
}

// line are the keys and values of a line.
func (p deniedPacket) line(of *pod, q Question, peers []string, v Verdict) []any {
	text := func(a netip.AddrPort) string {
		if hasPorts(p.proto) {
			return a.String()
		}
		return a.Addr().String()
	}
	client, server := p.ends()
	peer := q.Peer.String()
	if len(peers) > 0 {
		peer = strings.Join(peers[:min(len(peers), 3)], ",")
	}
	reason := v.Reason()
	if v.Allowed {
		reason = "the policies have changed since: " + reason
	}
	policies := v.Isolating
	if len(v.By) > 0 && !v.Allowed {
		policies = []PolicyRef{v.By[0].Policy}
	}
	return []any{
		"pod", of.Namespace + "/" + of.Name, "direction", string(q.Direction), "peer", peer,
		"source", text(client), "destination", text(server), "protocol", protocolText(p.proto),
		"policies", List(policies), "reason", reason,
	}
}

func hasPorts(proto uint8) bool { return proto == tcp || proto == udp || proto == sctp }

func protocolText(proto uint8) string {
	switch proto {
	case tcp, udp, sctp:
		return port{proto: proto, hi: maxPort}.String()
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return "ICMP"
	}
	return fmt.Sprint(proto)
}

var errNoPacket = errors.New("not an IP packet")

// parsePacket reads addresses, protocol and ports.
func parsePacket(b []byte) (p deniedPacket, err error) {
	if len(b) == 0 {
		return p, errNoPacket
	}
	first := true // the fragment with the ports
	switch b[0] >> 4 {
	case 4:
		header := int(b[0]&15) * 4
		if header < 20 || len(b) < header {
			return p, errNoPacket
		}
		p.src, p.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		p.proto = b[9]
		first = binary.BigEndian.Uint16(b[6:])&0x1fff == 0
		b = b[header:]
	case 6:
		if len(b) < 40 {
			return p, errNoPacket
		}
		p.src, p.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		p.proto, b = b[6], b[40:]
		for extension := true; extension && len(b) >= 8; {
			switch p.proto {
			case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
				n := (int(b[1]) + 1) * 8
				p.proto, b = b[0], b[min(n, len(b)):]
			case unix.IPPROTO_FRAGMENT:
				first = binary.BigEndian.Uint16(b[2:])&^7 == 0
				p.proto, b = b[0], b[8:]
			default:
				extension = false
			}
		}
	default:
		return p, errNoPacket
	}
	if first && hasPorts(p.proto) && len(b) >= 4 {
		p.sport, p.dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	}
	return p, nil
}
