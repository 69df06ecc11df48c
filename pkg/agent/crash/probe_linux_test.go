package crash

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A prober has a pod send to both ports of the victim. What comes counts by when the kernel had
// judged it: on a busy machine it is read later.
type prober struct {
	node  *node
	sends bool          // somebody sends
	sent  atomic.Int64  // datagrams to each port
	came  chan struct{} // holds one if some have come at sometimesPort

	mu     sync.Mutex // guards all below
	step   string     // what the test does
	newest time.Time  // when the last datagram came at deniedPort
	denied int        // of those: how many came while policies were in force
	first  string     // what was seen when the first of them came
	lapses []lapse    // when policies need not be in force
}

// A lapse that has not ended yet has no end.
type lapse struct{ from, to time.Time }

// probe begins to send.
func (w *world) probe(from *pod, every time.Duration) {
	w.t.Helper()
	p := w.prober
	denied, toDenied := pipe(w.t, from, w.victim, deniedPort)
	some, toSome := pipe(w.t, from, w.victim, sometimesPort)
	go receive(denied, p.deniedCame)
	go receive(some, func(time.Time) {
		select {
		case p.came <- struct{}{}:
		default:
		}
	})
	p.sends = true
	go func() {
		for tick := time.NewTicker(every); ; <-tick.C {
			for _, out := range []net.Conn{toDenied, toSome} {
				if _, err := out.Write([]byte("x")); err != nil && strings.Contains(err.Error(), "closed") {
					return
				}
			}
			p.sent.Add(1)
		}
	}()
}

// pipe is for datagrams from one pod to a port of another.
func pipe(t testing.TB, from, to *pod, port uint16) (in *net.UDPConn, out net.Conn) {
	t.Helper()
	at := net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.addrs[0], port))
	var err error
	to.ns.Run(func() { in, err = net.ListenUDP("udp", at) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	raw, err := in.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) })
	if err != nil {
		t.Fatal(err)
	}
	from.ns.Run(func() { out, err = net.Dial("udp", at.String()) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	return in, out
}

// receive passes on when the receiver's link got each datagram, which is behind all that judges it.
func receive(in *net.UDPConn, got func(time.Time)) {
	for b, more := make([]byte, 8), make([]byte, 64); ; {
		_, n, _, _, err := in.ReadMsgUDP(b, more)
		if err != nil {
			return
		}
		at := time.Now()
		if all, err := unix.ParseSocketControlMessage(more[:n]); err == nil {
			for _, m := range all {
				if m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) == 16 {
					at = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
				}
			}
		}
		got(at)
	}
}

// passes says whether what is sent from now on comes to sometimesPort.
func (p *prober) passes() bool {
	select {
	case <-p.came: // from before
	default:
	}
	// On a busy machine nothing may be sent for a while: that would be judged by none.
	const enough = 4
	timeout := time.After(20 * time.Millisecond)
	for before := p.sent.Load(); ; timeout = time.After(5 * time.Millisecond) {
		select {
		case <-p.came:
			return true
		case <-timeout:
			if !p.sends || p.sent.Load() >= before+enough {
				return false
			}
		}
	}
}

func (p *prober) deniedCame(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.newest = at
	for _, l := range p.lapses {
		if !at.Before(l.from) && (l.to.IsZero() || !at.After(l.to)) {
			return
		}
	}
	if p.denied++; p.denied > 1 {
		return
	}
	read := time.Now()
	tables, err := p.node.host.Try("nft", "list", "ruleset")
	if err != nil {
		tables = err.Error()
	}
	p.first = fmt.Sprintf("the first at %s, read %v later, during %q; the last lapse %v; the agent's last words are\n%s\nthe tables, read %v later:\n%s",
		at.UTC().Format(clock), read.Sub(at), p.step, p.last(), lastLines(p.node.log(), 15), time.Since(read), tables)
}

// clock is how the agent's log writes the time.
const clock = "2006-01-02T15:04:05.000Z"

func (l *lapse) String() string {
	if l == nil {
		return "none"
	}
	if l.to.IsZero() {
		return "since " + l.from.UTC().Format(clock)
	}
	return fmt.Sprintf("%s to %s", l.from.UTC().Format(clock), l.to.UTC().Format(clock))
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// at notes what the test does.
func (p *prober) at(step string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.step = step
}

// lapse is called before another program takes away what enforces policies, restored when they are
// in force again.
func (p *prober) lapse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := p.last(); last == nil || !last.to.IsZero() {
		p.lapses = append(p.lapses, lapse{from: time.Now()})
	}
}

func (p *prober) restored() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := p.last(); last != nil && last.to.IsZero() {
		last.to = time.Now()
	}
}

// last is the last lapse; nil: there was none.
func (p *prober) last() *lapse {
	if len(p.lapses) == 0 {
		return nil
	}
	return &p.lapses[len(p.lapses)-1]
}

// holds fails the test if a packet came since the last call that no policy allows.
func (p *prober) holds(t testing.TB, what string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.denied > 0 {
		t.Errorf("%s: %d packets came that no policy allows; %s", what, p.denied, p.first)
	}
	p.denied, p.first = 0, ""
}

// TestProber lets packets through that no policy allows.
func TestProber(t *testing.T) {
	t.Parallel()
	w := newWorld(t, newMemory())
	attachBystanders(w.node)
	policy := changes[slices.IndexFunc(changes, func(c change) bool { return c.name == "policy" })]
	w.wanted["policy"] = true
	policy.to(w, true)
	w.probe(bystanders(w.node)[0], time.Millisecond)
	w.eventually("at the start", w.all)
	holds := func() bool {
		r := &recorder{TB: t}
		w.prober.holds(r, "holds")
		return !r.failed
	}
	sends := func() {
		before := w.prober.sent.Load()
		w.eventually("it sends", func() error { return want(w.prober.sent.Load() > before+3, true, "sent") })
	}
	sends()
	if !holds() {
		t.Error("a packet came while the policy was in force")
	}

	w.kill()
	w.prober.lapse()
	w.host.Exec("nft", "flush", "ruleset")
	w.eventually("packets come", func() error { return want(w.prober.passes(), true, "comes") })
	sends()
	if !holds() {
		t.Error("a packet counts that came while no policy needed to be in force")
	}
	if policy.is(w, true) == nil {
		t.Error("the policy counts as enforced without its table")
	}

	w.prober.restored() // which is not so
	w.prober.at("a step")
	w.eventually("a packet counts", func() error {
		w.prober.mu.Lock()
		defer w.prober.mu.Unlock()
		return want(w.prober.denied > 0, true, "counts")
	})
	for _, said := range []string{"the first at 20", `during "a step"`, "network policies are in force", "the tables"} {
		if !strings.Contains(w.prober.first, said) {
			t.Errorf("it does not say %q: %s", said, w.prober.first)
		}
	}
	w.prober.lapse()
	w.eventually("all from before are read", func() error {
		w.prober.mu.Lock()
		defer w.prober.mu.Unlock()
		return want(w.prober.newest.After(w.prober.last().from), true, "read")
	})
	if holds() {
		t.Error("a packet does not count that no policy allows")
	}
	w.start()
	w.eventually("at the end", w.all)
	w.prober.restored()
	sends()
	if !holds() {
		t.Error("a packet came when the policy was in force again")
	}
}
