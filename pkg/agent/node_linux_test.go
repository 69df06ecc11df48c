package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/cni/plugin"
)

// programs holds flock and flock-agent as they are shipped.
var programs string

func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if programs, err = os.MkdirTemp("", "flock-agent-"); err != nil {
			panic(err)
		}
		defer os.RemoveAll(programs)
		build := exec.Command("go", "build", "-ldflags", "flock.fritzlab.net/flock/cmd/flock=-E "+plugin.Entry, "-o", programs, "flock.fritzlab.net/flock/cmd/flock", "flock.fritzlab.net/flock/cmd/flock-agent")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if info, _ := debug.ReadBuildInfo(); slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
			build.Args = slices.Replace(build.Args, 2, 4, "-race") // which needs the runtime from the start
			build.Env = append(os.Environ(), "CGO_ENABLED=1")
		}
		if out, err := build.CombinedOutput(); err != nil {
			panic(fmt.Sprintf("%v: %s", err, out))
		}
		return m.Run()
	}())
}

const nodeConfig = `{"metadata":{"name":"node1","generation":3},"spec":{
	"podCIDRs":{"ipv6":["2001:db8:1::/64"],"ipv4":["10.1.0.0/24"],"quarantineSeconds":0},
	"defaults":{"ipv4":true}}}`

// node is a node in a namespace of its own, with a router beside it. Its API
// server is never there: it works from the copy of its NodeConfig.
type node struct {
	t            *testing.T
	host, router *nettest.NS
	state        string // the state directory
	agent        *exec.Cmd
	env          []string // of the agent, besides the test's
}

// newNode makes a node whose agent is not started yet.
func newNode(t *testing.T, nodeConfig string) *node {
	t.Helper()
	n := &node{t: t, host: nettest.New(t), router: nettest.New(t), state: t.TempDir()}
	n.host.Veth("uplink", n.router, "node1")
	n.host.IP("addr", "add", "2001:db8:ffff::2/64", "dev", "uplink", "nodad")
	n.router.IP("addr", "add", "2001:db8:ffff::1/64", "dev", "node1", "nodad")
	n.host.IP("addr", "add", "192.0.2.2/24", "dev", "uplink")
	n.router.IP("addr", "add", "192.0.2.1/24", "dev", "node1")
	n.host.IP("route", "add", "default", "via", "2001:db8:ffff::1")
	n.host.IP("route", "add", "default", "via", "192.0.2.1")
	n.router.IP("route", "add", "2001:db8:1::/64", "via", "2001:db8:ffff::2")
	n.router.IP("route", "add", "10.1.0.0/24", "via", "192.0.2.2")
	n.write("kubeconfig", `{"apiVersion":"v1","kind":"Config","current-context":"c",
		"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
		"clusters":[{"name":"c","cluster":{"server":"http://127.0.0.1:1"}}],"users":[{"name":"u","user":{}}]}`)
	if nodeConfig != "" {
		n.write("nodeconfig.json", nodeConfig)
	}
	return n
}

func (n *node) write(name, content string) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(n.state, name), []byte(content), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) socket() string { return filepath.Join(n.state, "cni.sock") }

// start starts the agent and waits until it answers.
func (n *node) start(flags ...string) {
	n.t.Helper()
	log, err := os.OpenFile(filepath.Join(n.state, "agent.log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	n.agent = exec.Command(filepath.Join(programs, "flock-agent"), append([]string{"--node-name=node1", "--state-dir=" + n.state,
		"--kubeconfig=" + filepath.Join(n.state, "kubeconfig"), "--exit-sources=none", "--log-level=debug"}, flags...)...)
	n.agent.Stderr, n.agent.Env = log, append(os.Environ(), n.env...)
	n.host.Run(func() { err = n.agent.Start() })
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(n.kill)
	eventually(n.t, n.agentLog, func() error {
		_, err := os.Stat(n.socket())
		if err == nil {
			if _, err := n.status(); err == nil || !strings.Contains(err.Error(), "is starting") && !strings.Contains(err.Error(), "not running") {
				return nil
			}
		}
		return fmt.Errorf("the agent does not answer: %v", err)
	})
}

func (n *node) agentLog() string {
	b, _ := os.ReadFile(filepath.Join(n.state, "agent.log"))
	return string(b)
}

// kill is kill -9.
func (n *node) kill() {
	if strings.Contains(n.agentLog(), "DATA RACE") { // where the test was built to look for them
		n.t.Errorf("the agent has a data race:\n%s", n.agentLog())
	}
	if n.agent != nil {
		n.agent.Process.Kill()
		n.agent.Wait()
		n.agent = nil
	}
}

// network is the CNI side of the node, as a runtime has it.
func (n *node) network() (*libcni.CNIConfig, *libcni.NetworkConfigList) {
	n.t.Helper()
	list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion":"1.1.0","name":"flock","plugins":[{"type":"flock","agentSocket":%q,"capabilities":{"portMappings":true}}]}`, n.socket()))
	if err != nil {
		n.t.Fatal(err)
	}
	return libcni.NewCNIConfigWithCacheDir([]string{programs}, filepath.Join(n.state, "cache"), nil), list
}

func (n *node) status() (string, error) {
	runtime, list := n.network()
	return "", runtime.GetStatusNetworkList(context.Background(), list)
}

// sandbox is a pod's network namespace with the runtime's name for it.
type sandbox struct {
	n  *node
	ns *nettest.NS
	id string
	// portMappings are of the pod's hostPorts.
	portMappings []map[string]any
}

func (n *node) sandbox(id string) *sandbox { return &sandbox{n: n, ns: nettest.New(n.t), id: id} }

func (s *sandbox) conf() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: s.id, NetNS: s.ns.Path(), IfName: "eth0", CapabilityArgs: map[string]any{"portMappings": s.portMappings}}
}

func (s *sandbox) add() ([]netip.Addr, error) {
	runtime, list := s.n.network()
	r, err := runtime.AddNetworkList(context.Background(), list, s.conf())
	if err != nil {
		return nil, err
	}
	result, err := types100.GetResult(r)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, ip := range result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		addrs = append(addrs, addr.Unmap())
	}
	return addrs, nil
}

func (s *sandbox) mustAdd() []netip.Addr {
	s.n.t.Helper()
	addrs, err := s.add()
	if err != nil {
		s.n.t.Fatalf("%v\n%s", err, s.n.agentLog())
	}
	return addrs
}

func (s *sandbox) check() error {
	runtime, list := s.n.network()
	return runtime.CheckNetworkList(context.Background(), list, s.conf())
}

func (s *sandbox) del() error {
	runtime, list := s.n.network()
	return runtime.DelNetworkList(context.Background(), list, s.conf())
}

func (s *sandbox) mustDel() {
	s.n.t.Helper()
	if err := s.del(); err != nil {
		s.n.t.Fatalf("%v\n%s", err, s.n.agentLog())
	}
}

// routes returns the destinations of flock's routes to pods.
func (n *node) routes() []netip.Addr {
	n.t.Helper()
	var addrs []netip.Addr
	for _, family := range []string{"-6", "-4"} {
		var rows []struct{ Dst, Type, Dev string }
		if err := json.Unmarshal([]byte(n.host.IP("-j", family, "route", "show", "proto", "85")), &rows); err != nil {
			n.t.Fatal(err)
		}
		for _, r := range rows {
			if strings.HasPrefix(r.Dev, "flock") {
				addrs = append(addrs, netip.MustParseAddr(r.Dst))
			}
		}
	}
	return addrs
}

// links returns flock's links on the node.
func (n *node) links() []string {
	n.t.Helper()
	var rows []struct{ Ifname string }
	if err := json.Unmarshal([]byte(n.host.IP("-j", "link", "show")), &rows); err != nil {
		n.t.Fatal(err)
	}
	var names []string
	for _, r := range rows {
		if strings.HasPrefix(r.Ifname, "flock") {
			names = append(names, r.Ifname)
		}
	}
	return names
}

func eventually(t *testing.T, log func() string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v\n%s", err, log())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func inParallel[T any](of []T, f func(int, T)) {
	var wg sync.WaitGroup
	for i, x := range of {
		wg.Go(func() { f(i, x) })
	}
	wg.Wait()
}

// reaches fails the test, with what there is to see, unless from gets an answer
// from the pod at addr.
func (n *node) reaches(from *nettest.NS, p *sandbox, addr netip.Addr) {
	n.t.Helper()
	out, err := from.Try("ping", "-c1", "-W5", addr.String())
	if err == nil {
		return
	}
	show := func(ns *nettest.NS, args ...string) string {
		out, err := ns.Try("ip", args...)
		return fmt.Sprintf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	n.t.Errorf("%s is not reached at %v: %s\n%s", p.id, addr, out, strings.Join([]string{
		show(n.router, "neigh"), show(n.host, "route", "get", addr.String()), show(n.host, "-6", "route"),
		show(n.host, "-s", "-d", "link"), show(n.host, "neigh"), show(p.ns, "-s", "addr"), show(p.ns, "-6", "route"), show(p.ns, "neigh"),
	}, ""))
}

// monitorRoutes returns a function that ends the watch and says which of flock's
// routes were changed since.
func (n *node) monitorRoutes() (seen func() string) {
	n.t.Helper()
	path := filepath.Join(n.t.TempDir(), "monitor")
	out, err := os.Create(path)
	if err != nil {
		n.t.Fatal(err)
	}
	defer out.Close()
	monitor := exec.Command("stdbuf", "-oL", "ip", "monitor", "route")
	monitor.Stdout = out
	n.host.Run(func() { err = monitor.Start() })
	if err != nil {
		n.t.Fatal(err)
	}
	content := func() string {
		b, _ := os.ReadFile(path)
		return string(b)
	}
	// The watch is on, and has seen all, when it has seen a route of the test's.
	mark := func(route string) {
		n.host.IP("route", "replace", "unreachable", route, "metric", "77")
		eventually(n.t, content, func() error {
			if !strings.Contains(content(), route) {
				n.host.IP("route", "del", "unreachable", route, "metric", "77")
				n.host.IP("route", "replace", "unreachable", route, "metric", "77")
				return fmt.Errorf("ip monitor has not seen %s", route)
			}
			return nil
		})
	}
	mark("2001:db8:aaaa::/64")
	return func() string {
		mark("2001:db8:bbbb::/64")
		monitor.Process.Kill()
		monitor.Wait()
		var flocks []string
		for line := range strings.Lines(content()) {
			if strings.Contains(line, "proto 85") {
				flocks = append(flocks, line)
			}
		}
		return strings.Join(flocks, "")
	}
}
