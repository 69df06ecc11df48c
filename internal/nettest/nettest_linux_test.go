package nettest_test

import (
	"net"
	"os"
	"runtime"
	"testing"

	"flock.fritzlab.net/flock/internal/nettest"
)

func netns(t *testing.T) string {
	t.Helper()
	s, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestNamespacesAreConnectedAndTheirOwn(t *testing.T) {
	t.Parallel()
	a, b := nettest.New(t), nettest.New(t)
	outside := netns(t)
	a.Run(func() {
		inside := netns(t)
		if inside == outside {
			t.Errorf("Run is still in %s", outside)
		}
		b.Run(func() {
			if got := netns(t); got == inside || got == outside {
				t.Errorf("nested Run is in %s", got)
			}
		})
		if got := netns(t); got != inside {
			t.Errorf("after a nested Run the thread is in %s, want %s", got, inside)
		}
	})

	a.Veth("eth0", b, "eth0")
	a.Address("eth0", "2001:db8::1/64")
	b.Address("eth0", "2001:db8::2/64")
	a.Address("eth0", "192.0.2.1/24")
	b.Address("eth0", "192.0.2.2/24")
	a.Exec("ping", "-c1", "-W5", "2001:db8::2") // one packet each: none is lost at the start
	a.Exec("ping", "-c1", "-W5", "192.0.2.2")

	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range addrs {
		if addr.String() == "2001:db8::1/64" {
			t.Error("the test's address is in the machine's own namespace")
		}
	}
}

func TestRunLeavesTheNamespaceWhenItsGoroutineEnds(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	var before, after string
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		before = netns(t)
		defer func() { after = netns(t) }()
		ns.Run(runtime.Goexit) // what t.FailNow does
	}()
	<-done
	if before == "" || after != before {
		t.Errorf("the thread was in %q and is now in %q", before, after)
	}
}

func TestSysctlsAreTheNamespacesOwn(t *testing.T) {
	t.Parallel()
	a, b := nettest.New(t), nettest.New(t)
	was := b.ReadSysctl("ipv6/conf/default/hop_limit")
	a.Sysctl("ipv6/conf/default/hop_limit", "33")
	if got := a.ReadSysctl("ipv6/conf/default/hop_limit"); got != "33" {
		t.Errorf("hop_limit in a = %s, want 33", got)
	}
	if got := b.ReadSysctl("ipv6/conf/default/hop_limit"); got != was {
		t.Errorf("hop_limit in b = %s, want %s", got, was)
	}
}
