package nft

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/netlink"
)

var (
	table   = Table{Inet, "test"}
	names   = Set{Table: table, Name: "names", Key: []Field{IfName}, Counters: true}
	counter = Counter{table, "count"}
	chain   = Chain{Table: table, Name: "out", Hook: unix.NF_INET_LOCAL_OUT, Priority: -450}
)

// dial makes a namespace with an empty table.
func dial(t testing.TB) (*Conn, *nettest.NS) {
	t.Helper()
	ns := nettest.New(t)
	c := again(t, ns)
	var b Batch
	b.AddTable(table)
	b.AddSet(names)
	b.AddCounter(counter)
	b.AddChain(chain)
	commit(t, c, &b)
	return c, ns
}

func again(t testing.TB, ns *nettest.NS) (c *Conn) {
	t.Helper()
	ns.Run(func() {
		var err error
		if c, err = Dial(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(c.Close)
	return c
}

func commit(t testing.TB, c *Conn, b *Batch) {
	t.Helper()
	if err := c.Commit(b); err != nil {
		t.Fatal(err)
	}
}

// keys are n keys of names, from the first-th on.
func keys(first, n int) []string {
	ks := make([]string, n)
	for i := range ks {
		k := make([]byte, IfName.len)
		copy(k, fmt.Sprintf("if%07d", first+i))
		ks[i] = string(k)
	}
	return ks
}

func wantKeys(t *testing.T, c *Conn, want []string) {
	t.Helper()
	es, err := c.Elements(names)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]string, len(es))
	for i, e := range es {
		got[i] = e.Key
	}
	if !slices.Equal(got, want) {
		t.Errorf("the set has %d elements %.100q…, want %d %.100q…", len(got), got, len(want), want)
	}
}

// A transaction that is refused names the step, and leaves nothing behind.
func TestRefusal(t *testing.T) {
	t.Parallel()
	c, _ := dial(t)
	var b Batch
	b.AddElements(names, keys(0, 2)...)
	b.DelElements(names, keys(7, 1)...)
	b.AddElements(names, keys(2, 2)...)
	err := c.Commit(&b)
	var refused *netlink.Error
	if !errors.As(err, &refused) || refused.Errno != unix.ENOENT || !strings.HasPrefix(err.Error(), "nftables: delete elements of set inet test names: ") {
		t.Errorf("got %v, want the deletion's ENOENT", err)
	}
	wantKeys(t, c, []string{})

	var ok Batch
	ok.AddElements(names, keys(0, 3)...)
	commit(t, c, &ok)
	commit(t, c, &ok) // all there already
	wantKeys(t, c, keys(0, 3))
	if _, err := c.Elements(Set{Table: table, Name: "none"}); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "inet test none") {
		t.Errorf("elements of a set that is not there: %v", err)
	}
	if _, err := c.Counter(Counter{table, "none"}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a counter that is not there: %v", err)
	}
	if err := c.Commit(&Batch{}); err != nil {
		t.Errorf("nothing to do: %v", err)
	}
}

// Without CAP_NET_ADMIN the kernel refuses the transaction as a whole.
func TestNotPermitted(t *testing.T) {
	t.Parallel()
	c, _ := dial(t)
	refused := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		var none [2]unix.CapUserData
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			refused <- err
			return
		}
		var b Batch
		b.AddElements(names, keys(0, 1)...)
		refused <- c.Commit(&b)
	}()
	var e *netlink.Error
	if err := <-refused; !errors.As(err, &e) || e.Errno != unix.EPERM || !strings.Contains(e.Error(), "CAP_NET_ADMIN") {
		t.Errorf("got %v, want EPERM and the capability's name", err)
	}
	wantKeys(t, c, []string{})
}

func TestTooLarge(t *testing.T) {
	t.Parallel()
	c, _ := dial(t)
	var b Batch
	b.AddElements(names, keys(0, 20000)...)
	if err := c.Commit(&b); !errors.Is(err, unix.EMSGSIZE) || !strings.Contains(err.Error(), fmt.Sprint(b.Len())) {
		t.Errorf("got %v, want EMSGSIZE and the size", err)
	}
	b = Batch{}
	b.AddElements(names, keys(0, 3000)...) // several messages
	commit(t, c, &b)
	wantKeys(t, c, keys(0, 3000))
}

// Where the socket has no room for the answer, what came of the transaction is not
// known, and is not made up.
func TestAnswerLost(t *testing.T) {
	t.Parallel()
	_, ns := dial(t)
	var c *Conn
	ns.Run(func() {
		fd, err := netlink.Open(unix.NETLINK_NETFILTER)
		if err != nil {
			t.Fatal(err)
		}
		c = &Conn{conn: netlink.NewConn(fd)}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
			t.Fatal(err)
		}
		var unread netlink.Request
		begin(&unread, unix.NFT_MSG_GETGEN, 0, Inet)
		unread.End(0)
		for range 10 {
			if _, err := unix.Write(fd, unread); err != nil {
				t.Fatal(err)
			}
		}
	})
	defer c.Close()
	var b Batch
	b.AddElements(names, keys(0, 1)...)
	if err := c.Commit(&b); !errors.Is(err, netlink.ErrUnknown) || !errors.Is(err, unix.ENOBUFS) {
		t.Errorf("got %v, want ErrUnknown and ENOBUFS", err)
	}
	wantKeys(t, c, keys(0, 1)) // it was carried out, as it happens

	// Of more refusals than there is room for, the first is known. Late ones are
	// not the next transaction's.
	b = Batch{}
	for _, k := range keys(7, 500) {
		b.DelElements(names, k)
	}
	if err := c.Commit(&b); !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v, want ENOENT", err)
	}
	b = Batch{}
	b.AddElements(names, keys(1, 1)...)
	commit(t, c, &b)
	wantKeys(t, c, keys(0, 2))
}

// A dump during which others commit is repeated, but not for ever.
func TestInterruptedDump(t *testing.T) {
	t.Parallel()
	c, ns := dial(t)
	var b Batch
	b.AddElements(names, keys(0, 3000)...) // more than one datagram
	commit(t, c, &b)
	other := again(t, ns)
	n := 0
	interrupt := func() {
		n++
		var b Batch
		b.AddTable(Table{ARP, fmt.Sprint("other", n)})
		commit(t, other, &b)
	}
	c.onPart = func() {
		c.onPart = nil
		interrupt()
	}
	wantKeys(t, c, keys(0, 3000))
	c.onPart = interrupt
	if _, err := c.Elements(names); !errors.Is(err, netlink.ErrInterrupted) {
		t.Errorf("got %v, want ErrInterrupted", err)
	}
	c.onPart = nil
	wantKeys(t, c, keys(0, 3000))
}

// While the kernel enlarges a set's hash table, dumps list some members twice and
// leave out others, without NLM_F_DUMP_INTR. Elements must detect it.
func TestElementsOfGrowingSet(t *testing.T) {
	t.Parallel()
	for range 10 {
		c, _ := dial(t)
		for n := 0; n < 4000; n += 500 {
			var b Batch
			b.AddElements(names, keys(n, 500)...)
			commit(t, c, &b)
			wantKeys(t, c, keys(0, n+500))
		}
		c.Close()
	}
}

// Counts outlast the rules that use them, and elements what is added again.
func TestCounts(t *testing.T) {
	t.Parallel()
	c, ns := dial(t)
	lo := string(append([]byte("lo"), make([]byte, 14)...))
	rules := []Rule{
		{Meta(unix.NFT_META_OIFNAME, Reg1), In(names), To(counter)},
	}
	var b Batch
	b.AddElements(names, lo)
	b.SetRules(chain, rules...)
	commit(t, c, &b)
	ns.Exec("ping", "-c1", "-W5", "::1")
	before, err := c.Counter(counter)
	if err != nil || before.Packets != 2 { // request and reply
		t.Errorf("counted %+v, %v; want 2 packets", before, err)
	}

	b = Batch{}
	b.AddCounter(counter)
	b.AddElements(names, lo)
	b.SetRules(chain, rules...)
	commit(t, c, &b)
	if after, err := c.Counter(counter); err != nil || after != before {
		t.Errorf("counted %+v, %v; want %+v still", after, err, before)
	}
	es, err := c.Elements(names)
	if err != nil || len(es) != 1 || es[0].Count != before {
		t.Errorf("elements %+v, %v; want lo with %+v", es, err, before)
	}
	b = Batch{}
	b.SetRules(chain)
	b.Empty(names)
	commit(t, c, &b)
	wantKeys(t, c, []string{})
	if list := ns.Exec("nft", "list", "chain", "inet", "test", "out"); strings.Contains(list, "oifname") {
		t.Errorf("rules are left: %s", list)
	}
}

// Elements have their own time, which the kernel counts, or none.
func TestElementsExpire(t *testing.T) {
	t.Parallel()
	c, ns := dial(t)
	s := Set{Table: table, Name: "expire", Key: []Field{InetPort}, Data: []Field{InetPort}, Expires: true}
	var b Batch
	b.AddSet(s)
	b.Add(s, Element{Key: "\x00\x01", Data: "\x00\x02", Timeout: time.Hour}, Element{Key: "\x00\x03", Data: "\x00\x04"}, Element{Key: "\x00\x05", Data: "\x00\x06", Timeout: 100 * time.Millisecond})
	commit(t, c, &b)
	nettest.Eventually(t, func() error {
		es, err := c.Elements(s)
		if err != nil || len(es) != 2 || es[0].Timeout > time.Hour || es[0].Timeout < 59*time.Minute || es[1].Timeout != 0 || es[0].Data != "\x00\x02" {
			return fmt.Errorf("elements %+v, %v", es, err)
		}
		return nil
	})
	if list := ns.Exec("nft", "list", "map", "inet", "test", "expire"); !strings.Contains(list, "1 timeout 1h expires 59m") || !strings.Contains(list, "flags timeout") {
		t.Errorf("nft lists:\n%s", list)
	}
	contents, err := c.Contents(table)
	if err != nil || contents.Sets["expire"] != s.Definition() {
		t.Errorf("definition %q, want %q (%v)", contents.Sets["expire"], s.Definition(), err)
	}
}

func FuzzParse(f *testing.F) {
	var r netlink.Request
	r.Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
		r.Nest(unix.NFTA_LIST_ELEM, func() {
			r.Nest(unix.NFTA_SET_ELEM_KEY, func() { r.Bytes(unix.NFTA_DATA_VALUE, []byte("key")) })
			r.Nest(unix.NFTA_SET_ELEM_EXPR, func() {
				r.Nest(unix.NFTA_EXPR_DATA, func() { r.Bytes(unix.NFTA_COUNTER_PACKETS, make([]byte, 8)) })
			})
		})
	})
	f.Add([]byte(r))
	f.Fuzz(func(t *testing.T, body []byte) {
		es, err := parseElements(body)
		for _, e := range es {
			if e.Key == "" && err == nil {
				t.Errorf("an element without key: %v", es)
			}
		}
	})
}
