//go:build cluster

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// networkd: Debian's systemd-networkd, as it is, runs on a node and takes charge of a
// link. It then removes every route and nexthop that it did not make, flock's too.
// They are back at once, with the same agent.
func networkd(t *testing.T) {
	const node, link = "node2", "extra0"
	apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: networkd}
---
apiVersion: flock.fritzlab.net/v1alpha1
kind: AddressPool
metadata: {name: networkd}
spec:
  cidrs: ["2001:db8:54::/64", "203.0.113.64/26"]
  uses: [anycast]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: networkd}}
---
apiVersion: v1
kind: Pod
metadata:
  name: anycast
  namespace: networkd
  annotations: {flock.fritzlab.net/anycast: "2001:db8:54::1,203.0.113.65"}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers: [{name: echo, image: "echo:dev", imagePullPolicy: Never}]
`, node))
	t.Cleanup(func() {
		mustKubectl(t, "delete", "namespace", "networkd", "--wait=false")
		mustKubectl(t, "delete", "addresspool", "networkd")
	})
	on := func(argv ...string) string {
		t.Helper()
		return mustLab(t, append([]string{"exec", node, "--"}, argv...)...)
	}
	state := func() string {
		t.Helper()
		// Nexthops get other IDs when they are made again.
		return on("sh", "-c", `ip -6 route show proto 85; ip -4 route show proto 85; ip nexthop show proto 85`)
	}
	ids := func(s string) string {
		var lines []string
		for line := range strings.Lines(s) {
			f := strings.Fields(line)
			for i := range f {
				if i > 0 && (f[i-1] == "nhid" || f[i-1] == "id" || f[i-1] == "group") {
					f[i] = "…"
				}
			}
			lines = append(lines, strings.Join(f, " "))
		}
		return strings.Join(lines, "\n")
	}
	var before string
	eventually(t, 30*time.Second, func() error {
		before = state()
		for _, want := range []string{"2001:db8:54::1 ", "203.0.113.65 ", "unreachable 2001:db8:100:2::/64", "unreachable 10.244.2.0/24", " group "} {
			if !strings.Contains(before, want) {
				return fmt.Errorf("%s is not among flock's routes and nexthops on %s:\n%s", want, node, before)
			}
		}
		return nil
	})
	restarts := func() string {
		return agentPods(t, "--output=jsonpath={.items[*].status.containerStatuses[*].restartCount}")
	}
	restarted := restarts()

	monitor := &background{}
	monitor.start(t, node, "ip", "-timestamp", "monitor", "route", "nexthop")
	// It needs no udev where /sys is read-only, nor D-Bus.
	on("sh", "-ec", `mkdir -p /run/systemd/network /run/systemd/netif
		chown systemd-network:systemd-network /run/systemd/netif
		printf '[Match]\nName=`+link+`\n[Network]\nLinkLocalAddressing=no\n' > /run/systemd/network/10-extra.network`)
	daemon := &background{}
	daemon.start(t, node, "unshare", "--mount", "sh", "-ec", "mount -o remount,bind,ro /sys; SYSTEMD_LOG_TARGET=console exec /lib/systemd/systemd-networkd")
	eventually(t, 60*time.Second, func() error {
		if !strings.Contains(daemon.said(), "Enumeration completed") {
			return fmt.Errorf("systemd-networkd: %s", daemon.said())
		}
		return nil
	})
	t.Cleanup(func() { on("sh", "-c", "ip link del "+link+"; rm -rf /run/systemd") })
	began := time.Now()
	on("sh", "-ec", "ip link add "+link+" type veth peer name extra1; ip link set extra1 up; ip link set "+link+" up")
	eventually(t, 60*time.Second, func() error {
		for _, gone := range []string{"Deleted unreachable 2001:db8:100:2::/64", "Deleted unreachable 10.244.2.0/24", "Deleted 2001:db8:54::1 "} {
			if !strings.Contains(monitor.said(), gone) {
				return fmt.Errorf("systemd-networkd did not cause %q:\n%s\n%s", gone, daemon.said(), monitor.said())
			}
		}
		return nil
	})
	eventually(t, 60*time.Second, func() error {
		if now := state(); ids(now) != ids(before) {
			return fmt.Errorf("flock's routes and nexthops were\n%s\nand are\n%s", before, now)
		}
		return nil
	})
	t.Logf("all is back %s after systemd-networkd took charge of a link", time.Since(began).Round(10*time.Millisecond))
	if now := restarts(); now != restarted {
		t.Errorf("restarts of flock's containers: %s, were %s", now, restarted)
	}
	sessionsUp(t)
	for _, url := range []string{"http://[2001:db8:54::1]:8080/", "http://203.0.113.65:8080/"} {
		ask(t, url).allAnswered(t)
	}
	daemon.stop(t)
	monitor.stop(t)
}
