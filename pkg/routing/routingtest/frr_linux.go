package routingtest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// frrPrograms is where Debian's package has the daemons.
const frrPrograms = "/usr/lib/frr/"

type frr struct {
	ns      *NS
	peer    string // the neighbor in FRR's words
	daemons map[string]*Daemon
}

// StartFRR starts FRRouting as the node's router.
func StartFRR(ns *NS, c RouterConfig) (Router, error) {
	r := &frr{ns: ns, daemons: map[string]*Daemon{}}
	r.peer = c.Neighbor.String()
	if !c.Neighbor.IsValid() {
		r.peer = c.Interface
	}
	if err := r.own(); err != nil {
		return nil, err
	}
	r.start("zebra", "")
	if c.BFD {
		r.start("bfdd", "")
	}
	r.start("bgpd", frrBGP(r.peer, c))
	return r, nil
}

// StartFRROSPF starts FRRouting with OSPFv2 and OSPFv3 as the node's neighbor.
func StartFRROSPF(ns *NS, ospfd, ospf6d string) (log func() string, err error) {
	r := &frr{ns: ns, daemons: map[string]*Daemon{}}
	if err := r.own(); err != nil {
		return nil, err
	}
	r.start("zebra", "")
	r.start("ospfd", ospfd)
	r.start("ospf6d", ospf6d)
	return r.Log, nil
}

// StartFRRWith starts FRRouting's BGP and BFD and gives them a configuration as an
// operator has it in frr.conf. It fails the test if FRRouting does not take a line.
func StartFRRWith(ns *NS, conf string) (log func() string) {
	ns.t.Helper()
	r := &frr{ns: ns, daemons: map[string]*Daemon{}}
	if err := r.own(); err != nil {
		ns.t.Fatal(err)
	}
	for _, name := range []string{"zebra", "bfdd", "bgpd"} {
		r.start(name, "")
	}
	file := filepath.Join(ns.Dir, "frr.conf")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		ns.t.Fatal(err)
	}
	for _, args := range [][]string{{"-C", "-f", file}, {"-f", file}} {
		cmd := exec.Command("vtysh", append([]string{"--vty_socket", ns.Dir}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "%") {
			ns.t.Fatalf("vtysh %v: %v: %s", args, err, out)
		}
	}
	return r.Log
}

// own gives the daemons' directory to the user that they drop to.
func (r *frr) own() error {
	owner, err := user.Lookup("frr")
	if err != nil {
		return err
	}
	uid, _ := strconv.Atoi(owner.Uid)
	gid, _ := strconv.Atoi(owner.Gid)
	return os.Chown(r.ns.Dir, uid, gid)
}

// start runs a daemon and waits until it answers.
func (r *frr) start(name, config string) {
	r.ns.t.Helper()
	file := filepath.Join(r.ns.Dir, name+".conf")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		r.ns.t.Fatal(err)
	}
	args := []string{"-f", file, "-i", filepath.Join(r.ns.Dir, name+".pid"), "-z", filepath.Join(r.ns.Dir, "zserv"),
		"--vty_socket", r.ns.Dir, "-P", "0", "--log", "stdout"}
	if name == "bfdd" {
		args = append(args, "--bfdctl", filepath.Join(r.ns.Dir, "bfdd.sock"))
	}
	r.daemons[name] = StartDaemon(r.ns, frrPrograms+name, args...)
	Eventually(r.ns.t, 10*time.Second, func() error {
		_, err := r.vtysh(name, "show version")
		return err
	})
}

func frrBGP(peer string, c RouterConfig) string {
	var b strings.Builder
	fmt.Fprintf(&b, "frr defaults datacenter\nrouter bgp %d\n bgp router-id 192.0.2.1\n no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n no bgp network import-check\n", c.LocalAS)
	n := " neighbor " + peer
	if !c.Neighbor.IsValid() {
		fmt.Fprintf(&b, "%s interface remote-as external\n", n)
	} else {
		fmt.Fprintf(&b, "%s remote-as %d\n%s capability extended-nexthop\n", n, c.RemoteAS, n)
		if c.Interface != "" {
			fmt.Fprintf(&b, "%s interface %s\n", n, c.Interface)
		}
	}
	fmt.Fprintf(&b, "%s timers connect %d\n", n, max(c.ConnectRetry, 1))
	if c.MD5 != "" {
		fmt.Fprintf(&b, "%s password %s\n", n, c.MD5)
	}
	if c.GTSM {
		fmt.Fprintf(&b, "%s ttl-security hops 1\n", n)
	}
	if c.BFD {
		fmt.Fprintf(&b, "%s bfd 3 100 100\n", n)
	}
	if c.GracefulRestart {
		fmt.Fprintf(&b, "%s graceful-restart-helper\n", n)
	}
	if c.Passive {
		fmt.Fprintf(&b, "%s passive\n", n)
	}
	for _, family := range []string{"ipv6", "ipv4"} {
		fmt.Fprintf(&b, " address-family %s unicast\n  neighbor %s activate\n", family, peer)
		for _, p := range c.Announce {
			if p.Addr().Is6() == (family == "ipv6") {
				fmt.Fprintf(&b, "  network %s\n", p)
			}
		}
		b.WriteString(" exit-address-family\n")
	}
	return b.String()
}

func (r *frr) vtysh(daemon, command string) ([]byte, error) {
	out, err := exec.Command("vtysh", "--vty_socket", r.ns.Dir, "-d", daemon, "-c", command).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("vtysh: %w: %s", err, out)
	}
	return out, nil
}

func (r *frr) query(daemon, command string, answer any) bool {
	out, err := r.vtysh(daemon, command+" json")
	return err == nil && json.Unmarshal(out, answer) == nil
}

type frrNeighbor struct {
	BGPState         string `json:"bgpState"`
	LastNotification string `json:"lastNotificationReason"`
	LastReset        string `json:"lastResetDueTo"`
	BFD              struct {
		Status string `json:"status"`
	} `json:"peerBfdInfo"`
}

func (r *frr) neighbor() frrNeighbor {
	answer := map[string]frrNeighbor{}
	r.query("bgpd", "show bgp neighbors "+r.peer, &answer)
	return answer[r.peer]
}

func (r *frr) State() string        { return strings.ToLower(r.neighbor().BGPState) }
func (r *frr) BFD() bool            { return r.neighbor().BFD.Status == "Up" }
func (r *frr) Notification() string { return r.neighbor().LastNotification }

func (r *frr) Log() string {
	var out string
	for name, d := range r.daemons {
		out += name + ":\n" + d.Log()
	}
	return out
}

func (r *frr) Route(prefix string) (Path, bool) {
	family := "ipv4"
	if is6(prefix) {
		family = "ipv6"
	}
	var answer struct {
		Paths []struct {
			ASPath struct {
				Segments []struct{ List []uint32 }
			}
			Metric    *int64
			LocPrf    *uint32
			Community struct{ List []string }
			Large     struct {
				String string
			} `json:"largeCommunity"`
			NextHops []struct{ IP, Scope string }
		}
	}
	if !r.query("bgpd", "show bgp "+family+" unicast "+prefix, &answer) || len(answer.Paths) == 0 {
		return Path{}, false
	}
	got := answer.Paths[0]
	p := Path{MED: -1, LocalPref: 100}
	for _, s := range got.ASPath.Segments {
		p.ASPath = append(p.ASPath, s.List...)
	}
	if got.Metric != nil {
		p.MED = *got.Metric
	}
	if got.LocPrf != nil {
		p.LocalPref = *got.LocPrf
	}
	for _, c := range got.Community.List {
		if n, ok := frrCommunities[c]; ok {
			c = n
		}
		p.Communities = append(p.Communities, c)
	}
	p.Large = strings.Fields(got.Large.String)
	slices.Sort(p.Communities)
	slices.Sort(p.Large)
	if len(got.NextHops) > 0 {
		p.NextHop = got.NextHops[0].IP
	}
	return p, true
}

// frrCommunities are the names that FRR prints for well-known communities.
var frrCommunities = map[string]string{"gracefulShutdown": "65535:0", "noExport": "65535:65281"}
