package routingtest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

type gobgp struct {
	ns     *NS
	api    string
	peer   string
	daemon *Daemon
}

// StartGoBGP starts GoBGP as the node's router. It does not touch the kernel.
func StartGoBGP(ns *NS, c RouterConfig) (Router, error) {
	if c.BFD {
		return nil, Unsupported("GoBGP 3.10 has no BFD")
	}
	r := &gobgp{ns: ns, api: "unix://" + filepath.Join(ns.Dir, "api"), peer: c.Neighbor.String()}
	if !c.Neighbor.IsValid() {
		r.meet(c.Interface)
	}
	file := filepath.Join(ns.Dir, "gobgpd.toml")
	if err := os.WriteFile(file, []byte(gobgpConfig(c)), 0o600); err != nil {
		return nil, err
	}
	r.daemon = StartDaemon(ns, "gobgpd", "-f", file, "--api-hosts", r.api, "--pprof-disable", "-p", "-l", "debug")
	Eventually(ns.t, 10*time.Second, func() error {
		_, err := r.gobgp("global")
		return err
	})
	for _, p := range c.Announce {
		if err := r.announce(p.String(), ""); err != nil {
			return nil, err
		}
	}
	for prefix, nextHop := range c.AnnounceVia {
		if err := r.announce(prefix, nextHop); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func gobgpConfig(c RouterConfig) string {
	var b strings.Builder
	fmt.Fprintf(&b, "[global.config]\n  as = %d\n  router-id = \"192.0.2.1\"\n[[neighbors]]\n  [neighbors.config]\n", c.LocalAS)
	if c.Neighbor.IsValid() {
		fmt.Fprintf(&b, "    neighbor-address = \"%s\"\n    peer-as = %d\n", c.Neighbor.WithZone(c.Interface), c.RemoteAS)
	} else {
		fmt.Fprintf(&b, "    neighbor-interface = \"%s\"\n", c.Interface)
	}
	if c.MD5 != "" {
		fmt.Fprintf(&b, "    auth-password = \"%s\"\n", c.MD5)
	}
	fmt.Fprintf(&b, "  [neighbors.timers.config]\n    hold-time = 9\n    keepalive-interval = 3\n    connect-retry = %d\n", max(c.ConnectRetry, 1))
	if c.GTSM {
		b.WriteString("  [neighbors.ttl-security.config]\n    enabled = true\n    ttl-min = 255\n")
	}
	if c.GracefulRestart {
		b.WriteString("  [neighbors.graceful-restart.config]\n    enabled = true\n    helper-only = true\n    restart-time = 120\n")
	}
	if c.Passive {
		b.WriteString("  [neighbors.transport.config]\n    passive-mode = true\n")
	}
	for _, family := range []string{"ipv6-unicast", "ipv4-unicast"} {
		fmt.Fprintf(&b, "  [[neighbors.afi-safis]]\n    [neighbors.afi-safis.config]\n      afi-safi-name = \"%s\"\n", family)
		if c.GracefulRestart {
			b.WriteString("    [neighbors.afi-safis.mp-graceful-restart.config]\n      enabled = true\n")
		}
	}
	return b.String()
}

// meet puts the node into the kernel's table of neighbors, where GoBGP looks when
// it starts and never again (its unnumbered-bgp.md says to ping).
func (r *gobgp) meet(iface string) {
	Eventually(r.ns.t, 10*time.Second, func() error {
		r.ns.Command("ping", "-6", "-c", "1", "-W", "1", "ff02::1%"+iface).Run()
		if out := r.ns.IP("-6 neigh show dev " + iface); !strings.Contains(out, "fe80::") {
			return fmt.Errorf("no neighbor: %q", out)
		}
		return nil
	})
}

// announce makes the router announce a prefix, with a next hop of its own choice
// if nextHop is empty.
func (r *gobgp) announce(prefix, nextHop string) error {
	args := []string{"global", "rib", "add", prefix, "-a", gobgpFamily(prefix)}
	if nextHop != "" {
		args = append(args, "nexthop", nextHop)
	}
	_, err := r.gobgp(args...)
	return err
}

func gobgpFamily(prefix string) string {
	if is6(prefix) {
		return "ipv6"
	}
	return "ipv4"
}

func (r *gobgp) gobgp(args ...string) ([]byte, error) {
	out, err := exec.Command("gobgp", append([]string{"--target", r.api}, args...)...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "Error") {
		return nil, fmt.Errorf("gobgp %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out, nil
}

func (r *gobgp) State() string {
	out, err := r.gobgp("neighbor", "-j")
	var answer []struct {
		State struct {
			SessionState int `json:"session_state"`
		}
	}
	if err != nil || json.Unmarshal(out, &answer) != nil || len(answer) == 0 {
		return "no session"
	}
	return []string{"unknown", "idle", "connect", "active", "opensent", "openconfirm", "established"}[answer[0].State.SessionState]
}

func (r *gobgp) BFD() bool { return false }

func (r *gobgp) Notification() string {
	for line := range strings.Lines(r.Log()) {
		if strings.Contains(line, "received notification") {
			return line
		}
	}
	return ""
}

func (r *gobgp) Log() string { return r.daemon.Log() }

func (r *gobgp) Route(prefix string) (Path, bool) {
	out, err := r.gobgp("global", "rib", prefix, "-a", gobgpFamily(prefix), "-j")
	if err != nil {
		return Path{}, false
	}
	var answer map[string][]struct {
		Attrs []struct {
			Type    int
			Value   json.RawMessage
			Metric  int64
			NextHop string

			Communities json.RawMessage
			ASPaths     []struct{ ASNs []uint32 } `json:"as_paths"`
		}
	}
	if json.Unmarshal(out, &answer) != nil || len(answer[prefix]) == 0 {
		return Path{}, false
	}
	p := Path{MED: -1, LocalPref: 100}
	for _, a := range answer[prefix][0].Attrs {
		switch a.Type {
		case 2:
			for _, s := range a.ASPaths {
				p.ASPath = append(p.ASPath, s.ASNs...)
			}
		case 3, 14:
			p.NextHop = a.NextHop
		case 4:
			p.MED = a.Metric
		case 5:
			json.Unmarshal(a.Value, &p.LocalPref)
		case 8:
			var cs []uint32
			json.Unmarshal(a.Communities, &cs)
			for _, c := range cs {
				p.Communities = append(p.Communities, fmt.Sprintf("%d:%d", c>>16, c&0xffff))
			}
		case 32:
			var ls []struct{ ASN, LocalData1, LocalData2 uint32 }
			json.Unmarshal(a.Value, &ls)
			for _, l := range ls {
				p.Large = append(p.Large, fmt.Sprintf("%d:%d:%d", l.ASN, l.LocalData1, l.LocalData2))
			}
		}
	}
	slices.Sort(p.Communities)
	return p, true
}
