package wiring

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// A test runs itself again with fewer capabilities; then this variable is set,
// and descriptor 3 is the sandbox.
const lessPrivileged = "FLOCK_TEST_LESS_PRIVILEGED"

func TestMain(m *testing.M) {
	if id := os.Getenv(lessPrivileged); id != "" {
		if err := everyOperation(id, os.NewFile(3, "sandbox")); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func everyOperation(id string, sandbox *os.File) error {
	h, err := Open()
	if err != nil {
		return err
	}
	defer h.Close()
	a := Attachment{ContainerID: id, HostIf: HostIfName(id), PodIf: "eth0", Addrs: parseAddrs("2001:db8:100::5", "10.244.0.5")}
	a.Routed = a.Addrs
	_, err = h.ApplyNode(NodeState{Summaries: []netip.Prefix{podNet6, podNet4}})
	if err == nil {
		_, err = h.Attach(sandbox, a)
	}
	if err == nil {
		_, err = h.Sync(context.Background())
	}
	if err == nil {
		err = h.Check(sandbox, a)
	}
	if err == nil {
		_, err = h.List()
	}
	if err == nil {
		_, err = h.ReleaseOthers(nil)
	}
	var l Link
	if err == nil {
		l, _, err = h.TakeDown(id)
	}
	if err == nil {
		var gone []Link
		if gone, err = h.DeleteReleased([]Link{l}); err == nil && len(gone) != 1 {
			err = errors.New("the link is still there")
		}
	}
	return err
}

// Two capabilities are enough for all of it, and an error names the one that is
// missing.
func TestCapabilities(t *testing.T) {
	t.Parallel()
	for caps, want := range map[string]string{
		"+net_admin,+sys_admin": "",
		"+net_admin":            "CAP_SYS_ADMIN",
		"+sys_admin":            "CAP_NET_ADMIN",
	} {
		t.Run(caps, func(t *testing.T) {
			t.Parallel()
			node := newNode(t)
			p := node.pod(t)
			if want == "CAP_NET_ADMIN" {
				node.apply(t) // which it could not
			}
			// What needs a sysctl: a sandbox whose settings are in the way.
			p.Sysctl("ipv6/conf/default/disable_ipv6", "1")
			var out []byte
			var err error
			node.ns.Run(func() {
				c := exec.Command("setpriv", "--bounding-set=-all,"+caps, "--inh-caps=-all", os.Args[0])
				c.Env = append(os.Environ(), lessPrivileged+"="+p.ContainerID)
				c.ExtraFiles = []*os.File{p.File()}
				out, err = c.CombinedOutput()
			})
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(string(out), want)) {
				t.Errorf("%v: %s\nwant %q", err, out, want)
			}
		})
	}
}
