package policy_test

import (
	"context"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/nflog"
)

// logged follows what the node's rules log.
func (st *stage) logged(t *testing.T) chan nflog.Packet {
	t.Helper()
	var log *nflog.Log
	st.lab.node.Run(func() {
		var err error
		if log, err = nflog.Open(kernel.PolicyLogGroup, 128); err != nil {
			t.Fatal(err)
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	came := make(chan nflog.Packet, 10000)
	done := make(chan error, 1)
	go func() {
		done <- log.Run(ctx, func(p nflog.Packet) {
			p.Payload = append([]byte(nil), p.Payload...)
			came <- p
		}, func() {})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		log.Close()
	})
	return came
}

// await is what has been logged, n packets or more.
func await(t *testing.T, came chan nflog.Packet, n int) (out []nflog.Packet) {
	t.Helper()
	nettest.Await(t, "logged packets", func() bool { return len(came) >= n })
	for len(came) > 0 {
		out = append(out, <-came)
	}
	return out
}

// Denied packets of the namespaces that want it are logged, others are not; and what is
// logged is denied as before, whoever listens.
func TestLogDenied(t *testing.T) {
	st := newStage(t)
	st.x.SetNetworkPolicy(ingressPolicy("deny", "server", ""))
	st.apply(t)
	if text, err := st.list(); err != nil || strings.Contains(text, "log") {
		t.Errorf("%v; nothing is logged, but the table says\n%s", err, text)
	}
	came := st.logged(t)
	st.wantReaches(t, false)
	st.x.SetLogged("other", "shop")
	st.apply(t)
	st.wantRepairs(t)
	st.wantReaches(t, false)
	first := await(t, came, 1)
	for _, p := range first {
		if p.Prefix != "deny-to-pod" || p.In == 0 || p.Out == 0 || len(p.Payload) < 40 {
			t.Errorf("logged %+v", p)
		}
	}
	// A restarted agent finds it as it is.
	st.table = openTable(t, st.lab.node)
	st.apply(t)
	st.wantRepairs(t)
	st.lab.node.Exec("nft", "delete rule inet flock-policy deny-to-pod handle "+st.handle(t, "log prefix"))
	st.wantRepairs(t, "chain inet flock-policy deny-to-pod: other rules")
	st.lab.node.Exec("nft", "list", "ruleset")

	// Connections are not judged again because of a log.
	st.x.SetNetworkPolicy(ingressPolicy("deny", "server", "client"))
	st.apply(t)
	st.wantReaches(t, true)
	mark := st.mark(t)
	st.x.SetLogged()
	st.apply(t)
	if again := st.mark(t); again != mark {
		t.Errorf("the generation changed from %s to %s", mark, again)
	}
	st.wantRepairs(t)
	if text, err := st.list(); err != nil || strings.Contains(text, "log") {
		t.Errorf("%v; nothing is logged any more, but the table says\n%s", err, text)
	}
	st.x.SetNetworkPolicy(ingressPolicy("deny", "server", ""))
	st.apply(t)
	for len(came) > 0 {
		<-came
	}
	st.wantReaches(t, false)
	if len(came) > 0 {
		t.Errorf("logged %+v", <-came)
	}
}

// handle is that of the table's first rule with a text.
func (st *stage) handle(t *testing.T, text string) string {
	t.Helper()
	for line := range strings.Lines(st.lab.node.Exec("nft", "-a", "list", "chain", "inet", "flock-policy", "deny-to-pod")) {
		if _, handle, ok := strings.Cut(line, "# handle "); ok && strings.Contains(line, text) {
			return strings.TrimSpace(handle)
		}
	}
	t.Fatalf("no rule with %s", text)
	return ""
}

// mark is the rule by which connections pass that this generation has judged.
func (st *stage) mark(t *testing.T) string {
	t.Helper()
	for line := range strings.Lines(st.lab.node.Exec("nft", "list", "chain", "inet", "flock-policy", "forward")) {
		if strings.Contains(line, "ct mark &") {
			return strings.TrimSpace(line)
		}
	}
	t.Fatal("no rule about the mark")
	return ""
}

// A flood is logged in part, and dropped in full.
func TestLogIsLimited(t *testing.T) {
	st := newStage(t)
	st.x.SetNetworkPolicy(ingressPolicy("deny", "server", ""))
	st.x.SetLogged("shop")
	st.apply(t)
	came := st.logged(t)
	const flood = 2000
	var tags []uint64
	for i := range flood {
		tags = append(tags, st.lab.send(firstSlot, segment{src: st.client.Addrs[0], dst: st.server.Addrs[0], proto: unix.IPPROTO_UDP, sport: uint16(i), dport: 9}))
	}
	at := st.lab.settled()
	for _, tag := range tags {
		if _, passed := at[tag]; passed {
			t.Fatal("a packet of the flood passed")
		}
	}
	logged := len(await(t, came, 1))
	t.Logf("%d of %d packets were logged", logged, flood)
	if logged > flood/4 { // five a second and five more; the machine may be slow
		t.Errorf("%d of %d packets were logged, want a few", logged, flood)
	}
	counts, err := st.table.Counts()
	if err != nil || counts.DeniedIn[slotLink(1)] != flood {
		t.Errorf("%v, %v; want %d denied packets", counts.DeniedIn, err, flood)
	}
}
