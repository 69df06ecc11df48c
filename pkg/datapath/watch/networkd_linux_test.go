package watch

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/datapath/kernel/kerneltest"
)

const networkd = "/lib/systemd/systemd-networkd"

// startNetworkd runs the real systemd-networkd in the node, with a .network file for links whose
// names begin with uplink, and with a drop-in, if there is one. It ends with the test.
func (n *node) startNetworkd(t *testing.T, dropIn string) {
	t.Helper()
	if _, err := os.Stat(networkd); err != nil {
		t.Skip("systemd-networkd is not installed")
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"uplink.network": "[Match]\nName=uplink*\n[Network]\nAddress=198.18.0.1/15\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
		"networkd.conf":  dropIn,
	} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	var cmd *exec.Cmd
	n.Run(func() {
		// Its own /run and /etc, and a /sys that cannot be written: without udev every link is
		// taken for initialized.
		cmd = exec.Command("unshare", "--mount", "sh", "-ec", fmt.Sprintf(`
			mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/netif; chmod 755 /run /run/systemd; chown systemd-network /run/systemd/netif
			mount -t tmpfs tmpfs /etc/systemd/network; chmod 755 /etc/systemd/network; cp %[1]s/uplink.network /etc/systemd/network/
			if [ -s %[1]s/networkd.conf ]; then mkdir -p /run/systemd/networkd.conf.d; cp %[1]s/networkd.conf /run/systemd/networkd.conf.d/flock.conf; fi
			mount -t sysfs -o ro sysfs /sys
			SYSTEMD_LOG_LEVEL=debug exec %[2]s`, dir, networkd))
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
		if t.Failed() {
			out, _ := os.ReadFile(dir + "/log")
			t.Logf("networkd: %s", out)
		}
	})
	n.eventually("networkd runs", func() bool {
		out, _ := os.ReadFile(dir + "/log")
		return strings.Contains(string(out), "Enumeration completed")
	})
}

// appears makes a link that the .network file is for, and waits until networkd has set it up.
func (n *node) appears(name string) {
	n.t.Helper()
	n.IP("link", "add", name, "type", "bridge")
	n.eventually("networkd has set "+name+" up", func() bool {
		return strings.Contains(n.IP("address", "show", "dev", name), "198.18.0.1/15")
	})
}

// A networkd that takes a new link into its care deletes what it does not know of other
// programs' routes and nexthops: all is back at once, and it is no fight.
func TestNetworkd(t *testing.T) {
	n := newNode(t, 2, nil)
	want := kerneltest.Names(n.objects())
	n.startNetworkd(t, "")
	n.back(want, "networkd's start")
	before := n.Status().Repairs
	at := time.Now()
	n.appears("uplink0")
	n.quiet()
	n.back(want, "a new link of networkd's")
	after := n.Status().Repairs
	t.Logf("repaired: %d routes, %d nexthops; the last %v after the link was made", after[kernel.Route]-before[kernel.Route],
		after[kernel.Nexthop]-before[kernel.Nexthop], time.Unix(0, n.synced.Load()).Sub(at))
	if s := n.Status(); len(s.Faults) > 0 {
		t.Errorf("faults %q", s.Faults)
	}
}

// The drop-in that flock ships keeps networkd's hands off routes; nexthops are left alone from
// systemd 256 on.
func TestNetworkdWithDropIn(t *testing.T) {
	dropIn, err := os.ReadFile("../../../deploy/networkd/90-flock.conf")
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t, 2, nil)
	want := kerneltest.Names(n.objects())
	n.startNetworkd(t, string(dropIn))
	n.quiet()
	before := n.Status().Repairs[kernel.Route]
	n.appears("uplink0")
	n.quiet()
	n.back(want, "a new link of networkd's")
	routes := n.Status().Repairs[kernel.Route] - before
	out, _ := exec.Command("networkctl", "--version").Output()
	var version int
	fmt.Sscanf(string(out), "systemd %d", &version)
	t.Logf("systemd %d: %d routes repaired", version, routes)
	if version >= 256 && routes > 0 {
		t.Errorf("%d routes repaired with the drop-in", routes)
	}
}
