package fabric

import (
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// After Cut a port keeps its carrier and forwards nothing. After Restore it forwards.
func TestPortState(t *testing.T) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends with its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		ip := func(args string) string {
			out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
			if err != nil {
				t.Errorf("ip %s: %v: %s", args, err, out)
			}
			return string(out)
		}
		ip("link add lan type bridge")
		ip("link set lan up")
		ip("link add node1 type veth peer name eth0")
		ip("link set node1 master lan up")
		ip("link set eth0 up")
		for _, c := range []struct {
			state byte
			want  string
		}{{portForwarding, "state forwarding"}, {portDisabled, "state disabled"}, {portDisabled, "state disabled"}, {portForwarding, "state forwarding"}} {
			if err := setPort("node1", c.state); err != nil {
				t.Error(err)
			}
			if got := ip("-d link show dev node1"); !strings.Contains(got, c.want) || !strings.Contains(got, "LOWER_UP") {
				t.Errorf("want %s, and the carrier: %s", c.want, got)
			}
		}
		if err := setPort("node9", portDisabled); err == nil {
			t.Error("there is no node9")
		}
	}()
	<-done
}
