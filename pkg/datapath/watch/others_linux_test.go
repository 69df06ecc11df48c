package watch

import (
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
)

// deafToTheClock leaves a Watcher with the kernel's notifications alone.
func deafToTheClock(w *Watcher) {
	for _, r := range w.runners {
		r.lookEvery = time.Hour
	}
}

// fearless has a Watcher never take repeated damage for a fight.
func fearless(w *Watcher) {
	for _, r := range w.runners {
		r.fightAfter = 1 << 30
	}
}

// What flock does itself, and what others do to what is theirs, is no reason to look.
func TestOwnAndForeignChangesAreNoReasonToLook(t *testing.T) {
	n := newNode(t, 1, deafToTheClock)
	n.quiet()
	before := n.syncs.Load()
	for range 10 {
		n.addPod()
	}
	for _, p := range n.pods[1:] {
		if _, _, err := n.host.TakeDown(p.ContainerID); err != nil {
			t.Fatal(err)
		}
	}
	n.quiet()
	own := n.syncs.Load() - before
	t.Logf("%d looks for 10 pods that came and went", own)
	if own > 20 {
		t.Errorf("%d looks because of 10 pods that came and went", own)
	}

	n.IP("link", "add", "br0", "type", "bridge")
	n.IP("link", "set", "br0", "up")
	n.IP("address", "add", "198.18.0.1/15", "dev", "br0")
	n.quiet()
	before = n.syncs.Load()
	n.Exec("sh", "-ec", `for i in $(seq 20000); do echo "route add 100.$((i>>16&63)).$((i>>8&255)).$((i&255))/32 dev br0 proto bird"; done | ip -batch -
		ip route flush proto bird
		for i in $(seq 100); do echo "neigh replace 198.18.0.$i lladdr 02:00:00:00:00:01 dev br0 nud reachable"; done | ip -batch -
		ip link del br0`)
	n.quiet()
	if n := n.syncs.Load() - before; n > 0 {
		t.Errorf("%d looks because of another program's routes, neighbours and links", n)
	}
	if s := n.Status(); len(s.Faults) > 0 || s.Repairs[kernel.Route] > 0 {
		t.Errorf("status %+v", s)
	}
}

// quiet waits until nobody has looked for a while.
func (n *node) quiet() {
	n.t.Helper()
	last, since := n.syncs.Load(), time.Now()
	n.eventually("quiet", func() bool {
		if now := n.syncs.Load(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 500*time.Millisecond
	})
}

// More notifications than the socket holds: every feature looks.
func TestLostNotifications(t *testing.T) {
	n := newNode(t, 1, func(w *Watcher) { deafToTheClock(w) })
	n.quiet()
	before := n.syncs.Load()
	n.Watcher.routeEvent(lostNotification)
	n.eventually("all features look", func() bool { return n.syncs.Load() >= before+3 })
}

// A daemon that deletes flock's routes in a loop is named, and costs little.
func TestFightWithADaemon(t *testing.T) {
	n := newNode(t, 2, nil)
	n.quiet()
	var thief *exec.Cmd
	n.Run(func() {
		thief = exec.Command("sh", "-c", `while :; do
			echo route del unreachable 2001:db8:100::/64 proto 85 metric 512
			sleep 0.01
		done | ip -6 -force -batch -`)
		thief.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := thief.Start(); err != nil {
			t.Fatal(err)
		}
	})
	defer func() {
		syscall.Kill(-thief.Process.Pid, syscall.SIGKILL)
		thief.Wait()
	}()
	n.eventually("the status names the fight", func() bool { return len(n.Status().Faults) > 0 })
	used, began := cpu(t), time.Now()
	time.Sleep(5 * time.Second) // what is measured
	share := float64(cpu(t)-used) / float64(time.Since(began))
	fault := n.Status().Faults[0]
	t.Logf("%.2f %% of a CPU; %s", 100*share, fault)
	if share > 0.02 {
		t.Errorf("the fight costs %.1f %% of a CPU", 100*share)
	}
	if !strings.Contains(fault, "ip (pid ") || !strings.Contains(fault, "keeps changing unreachable 2001:db8:100::/64") {
		t.Errorf("fault %q", fault)
	}
	if repairs := n.Status().Repairs[kernel.Route]; repairs < fightAfter || repairs > 30 {
		t.Errorf("%d repairs", repairs)
	}
}

// cpu is what this process has used of CPUs.
func cpu(t testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// What cannot be repaired is in the status within two seconds, and leaves it as soon as it can.
func TestStatusSaysWhatCannotBeRepaired(t *testing.T) {
	n := newNode(t, 1, deafToTheClock)
	// Between flock's repairs, another program's route takes the place.
	n.Exec("sh", "-c", `for i in $(seq 200); do
			echo route del unreachable 2001:db8:100::/64 proto 85 metric 512
			echo route add blackhole 2001:db8:100::/64 proto static metric 512
		done | ip -6 -force -batch - || true`)
	began := time.Now()
	n.eventually("the status says so", func() bool {
		s := n.Status()
		return len(s.Faults) > 0 && strings.Contains(fmt.Sprint(s.Faults), "ip route show 2001:db8:100::/64")
	})
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("that took %v", took)
	}
	n.IP("-6", "route", "del", "blackhole", "2001:db8:100::/64", "proto", "static", "metric", "512")
	n.eventually("it is forgotten", func() bool { return len(n.Status().Faults) == 0 })
	if out := n.IP("-6", "route", "show", "proto", "85", "type", "unreachable"); !strings.Contains(out, "2001:db8:100::/64") {
		t.Errorf("routes %s", out)
	}
}

// Objects that another program replaces in their place, which the kernel reports as new ones of
// that program's, are missed.
func TestReplacedInPlace(t *testing.T) {
	n := newNode(t, 2, deafToTheClock)
	n.quiet()
	n.IP("route", "replace", "unreachable", "10.244.0.0/16", "metric", "512", "proto", "static")
	n.eventually("the status says so", func() bool {
		return strings.Contains(fmt.Sprint(n.Status().Faults), "ip route show 10.244.0.0/16")
	})
	n.IP("route", "del", "unreachable", "10.244.0.0/16", "metric", "512", "proto", "static")
	n.eventually("the summary is back", func() bool {
		return len(n.Status().Faults) == 0 && strings.Contains(n.IP("route", "show", "proto", "85"), "unreachable 10.244.0.0/16")
	})
	want := n.IP("-6", "route", "show", "proto", "85")
	n.Exec("sh", "-ec", `set -- $(ip -6 nexthop | grep 'dev flock' | head -n 1); ip -6 nexthop replace $1 $2 dev lo`)
	n.eventually("the anycast address leads to both pods again", func() bool {
		return n.Status().Repairs[kernel.Nexthop] > 0 && withoutIDs(n.IP("-6", "route", "show", "proto", "85")) == withoutIDs(want)
	})
}

// withoutIDs drops the IDs of nexthops from a listing of routes.
func withoutIDs(routes string) string {
	return regexp.MustCompile(`nhid [0-9]+`).ReplaceAllString(routes, "")
}

// What another program puts in flock's way is in the status because the kernel tells of it, with the
// command that removes it, and leaves the status after that command.
func TestSurveyIsInTheStatus(t *testing.T) {
	n := newNode(t, 1, deafToTheClock)
	n.quiet()
	n.Exec("sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=1")
	n.eventually("the risk is noted", func() bool { return strings.Contains(fmt.Sprint(n.Status().Notes), "net.ipv4.conf.all.rp_filter=1") })
	n.Exec("sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=0")
	n.eventually("it is forgotten", func() bool { return len(n.Status().Notes) == 0 })
	for _, tc := range []struct{ do, want, undo string }{
		{"ip route add blackhole 10.244.0.0/16 proto static", "blackhole 10.244.0.0/16 proto static metric 0", "ip route del blackhole 10.244.0.0/16 proto static metric 0"},
		{"ip link add br0 type bridge; ip address add 10.244.7.1/24 dev br0", "address 10.244.7.1/24 dev br0", "ip link del br0"},
		{"nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'", "iptables -I FORWARD -i flock+ -j ACCEPT", "nft delete table ip filter"},
	} {
		n.Exec("sh", "-ec", tc.do)
		n.eventually("the status has "+tc.want, func() bool { return strings.Contains(fmt.Sprint(n.Status().Faults), tc.want) })
		n.Exec("sh", "-ec", tc.undo)
		n.eventually("the status is clean after "+tc.undo, func() bool { return len(n.Status().Faults) == 0 })
	}
}
