package crash

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/cni/plugin"
	"flock.fritzlab.net/flock/pkg/datapath/wiring"
)

// programs holds flock as it is shipped, and flock-agent built with the tag "faults".
var programs string

func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		if programs = *agents; programs != "" {
			return m.Run()
		}
		var err error
		if programs, err = os.MkdirTemp("", "flock-crash-"); err != nil {
			panic(err)
		}
		defer os.RemoveAll(programs)
		if err := build(programs); err != nil {
			panic(err)
		}
		return m.Run()
	}())
}

// build makes the plugin and the agent.
func build(dir string, flags ...string) error {
	const asShipped = "-ldflags=flock.fritzlab.net/flock/cmd/flock=-E " + plugin.Entry
	args := slices.Concat([]string{"build", "-tags", "faults", asShipped, "-o", dir}, flags, []string{"flock.fritzlab.net/flock/cmd/flock", "flock.fritzlab.net/flock/cmd/flock-agent"})
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

const nodeConfig = `{"metadata":{"name":"node1","generation":3},"spec":{
	"podCIDRs":{"ipv6":["2001:db8:1::/64"],"ipv4":["10.1.0.0/28"],"quarantineSeconds":0},
	"defaults":{"ipv4":true}}}`

// node is a node in a namespace of its own, as its container runtime sees it.
type node struct {
	t      testing.TB
	host   *nettest.NS
	state  string // the agent's directory, /run/flock
	dir    string // what survives a reboot
	agent  *exec.Cmd
	bird   *os.Process   // nil: there is none
	dead   chan struct{} // closed when the agent has ended
	boots  int
	env    []string // of the agent
	starts int
	// apart are addresses whose routes settled leaves to the test, and their nexthops.
	apart []string
	// pods are those that the runtime takes for attached, by container ID.
	pods map[string]*pod
}

// pod is a sandbox.
type pod struct {
	id    string
	ns    *nettest.NS
	args  string // CNI_ARGS
	port  int    // of the node, forwarded to the pod; 0: none
	addrs []netip.Addr
	owed  bool // a DEL: an ADD was answered with success, or a call was not answered, or DEL failed
}

func newNode(t testing.TB) *node {
	t.Helper()
	n := &node{t: t, state: t.TempDir(), dir: t.TempDir(), pods: map[string]*pod{}}
	n.write(n.kubeconfig(), `{"apiVersion":"v1","kind":"Config","current-context":"c",
		"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
		"clusters":[{"name":"c","cluster":{"server":"http://127.0.0.1:1"}}],"users":[{"name":"u","user":{}}]}`)
	n.boot()
	t.Cleanup(n.kill)
	return n
}

// boot makes the node's network as it is before flock starts, and what the API server would say.
func (n *node) boot() {
	n.t.Helper()
	n.boots++
	n.host = nettest.New(n.t)
	n.host.IP("link", "add", "uplink", "type", "bridge")
	n.host.IP("link", "set", "uplink", "up")
	n.write(filepath.Join(n.state, "nodeconfig.json"), nodeConfig)
}

// reboot ends everything that does not survive it. Whether /run does is the machine's business:
// where it is kept, it is known by the boot's ID.
func (n *node) reboot(keepsRun bool) {
	n.t.Helper()
	n.kill()
	for _, p := range n.pods {
		p.ns.Delete()
		n.forget(p)
	}
	n.host.Delete()
	boot := filepath.Join(n.state, "attachments", ".boot")
	if id, err := os.ReadFile(boot); keepsRun && err == nil {
		n.write(boot, strings.Map(func(r rune) rune { return '0' + '9' - max(min(r, '9'), '0') }, string(id)))
	} else {
		entries, err := os.ReadDir(n.state)
		if err != nil {
			n.t.Fatal(err)
		}
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(n.state, e.Name())); err != nil {
				n.t.Fatal(err)
			}
		}
	}
	n.boot()
	n.start()
}

func (n *node) kubeconfig() string { return filepath.Join(n.dir, "kubeconfig") }

func (n *node) write(path, content string) {
	n.t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// launch starts the agent with a command of package sys.
func (n *node) launch(arm string) {
	n.t.Helper()
	log, err := os.OpenFile(filepath.Join(n.dir, "agent.log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(programs, "flock-agent"), "--node-name=node1", "--state-dir="+n.state,
		"--kubeconfig="+n.kubeconfig(), "--exit-sources=none", "--pods-api=")
	cmd.Stderr = log
	cmd.Env = slices.Concat(os.Environ(), n.env, []string{"FLOCK_FAULTS=" + filepath.Join(n.state, "faults.sock"), "FLOCK_FAULTS_ARM=" + arm})
	n.starts++
	n.host.Run(func() { err = cmd.Start() })
	if err != nil {
		n.t.Fatal(err)
	}
	dead := make(chan struct{})
	go func() { cmd.Wait(); close(dead) }()
	n.agent, n.dead = cmd, dead
}

// start starts the agent, and returns when it serves pods.
func (n *node) start() {
	n.t.Helper()
	n.launch("")
	n.eventually("the agent serves", func() error {
		if !n.alive() {
			return fmt.Errorf("it has ended")
		}
		if err := n.listens(); err != nil { // cheaper than a process
			return err
		}
		_, err := n.call("STATUS", nil, nil)
		return err
	})
}

// listens fails unless the agent takes calls. Then they wait until it serves pods.
func (n *node) listens() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(n.state, "cni.sock")})
}

func (n *node) alive() bool {
	select {
	case <-n.dead:
		return false
	default:
		return n.agent != nil
	}
}

// kill is kill -9.
func (n *node) kill() {
	if n.agent != nil {
		n.agent.Process.Kill()
		<-n.dead
	}
}

// faults gives the agent, which runs, a command of package sys.
func (n *node) faults(command string) []string {
	n.t.Helper()
	lines, err := n.tryFaults(command)
	if err != nil {
		n.t.Fatalf("%s: %v\n%s", command, err, n.log())
	}
	return lines
}

// tryFaults fails if the agent has ended.
func (n *node) tryFaults(command string) (lines []string, err error) {
	conn, err := net.Dial("unix", filepath.Join(n.state, "faults.sock"))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	fmt.Fprintln(conn, command)
	for in := bufio.NewScanner(conn); in.Scan(); {
		if in.Text() == "" {
			return lines, nil
		}
		lines = append(lines, in.Text())
	}
	return nil, io.ErrUnexpectedEOF
}

func (n *node) log() string {
	b, _ := os.ReadFile(filepath.Join(n.dir, "agent.log"))
	return string(b[max(0, len(b)-8000):])
}

func (n *node) eventually(what string, f func() error) {
	n.t.Helper()
	// What counts is how often it was not so: on a machine that is busy all takes longer.
	for pause, waited := 2*time.Millisecond, time.Duration(0); ; pause = min(2*pause, 50*time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if waited += pause; waited > *patience {
			n.t.Fatalf("%s: %v\n%s", what, err, n.log())
		}
		time.Sleep(pause)
	}
}

// call executes the plugin as a runtime does.
func (n *node) call(command string, p *pod, more map[string]any) ([]byte, error) {
	cmd := n.plugin(command, p, more)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s%s", command, err, out.Bytes(), errOut.Bytes())
	}
	switch {
	case command == "ADD":
		// One that is answered with an error has left nothing.
		p.owed = p.owed || err == nil || strings.Contains(err.Error(), "stopped during the call")
	case command == "DEL":
		p.owed = err != nil
	}
	if err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// plugin is the process of a call.
func (n *node) plugin(command string, p *pod, more map[string]any) *exec.Cmd {
	conf := map[string]any{"cniVersion": "1.1.0", "name": "flock", "type": "flock", "agentSocket": filepath.Join(n.state, "cni.sock"), "capabilities": map[string]bool{"portMappings": true}}
	for k, v := range more {
		conf[k] = v
	}
	cmd := exec.Command(filepath.Join(programs, "flock"))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_PATH="+programs)
	if p != nil {
		cmd.Env = append(cmd.Env, "CNI_CONTAINERID="+p.id, "CNI_NETNS="+p.ns.Path(), "CNI_IFNAME=eth0", "CNI_ARGS="+p.args)
		if p.port != 0 {
			conf["runtimeConfig"] = map[string]any{"portMappings": []map[string]any{{"hostPort": p.port, "containerPort": 80, "protocol": "tcp"}}}
		}
	}
	stdin, _ := json.Marshal(conf)
	cmd.Stdin = bytes.NewReader(stdin)
	return cmd
}

func (n *node) sandbox(id string, port int) *pod {
	return &pod{id: id, ns: nettest.New(n.t), port: port}
}

// add is ADD. From its success on, the runtime takes the pod for attached.
func (n *node) add(p *pod) error {
	out, err := n.call("ADD", p, nil)
	if err != nil {
		return err
	}
	return n.added(p, out)
}

// added is what the runtime does with the answer of an ADD.
func (n *node) added(p *pod, answer []byte) error {
	var result struct {
		IPs []struct {
			Address netip.Prefix `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(answer, &result); err != nil {
		return err
	}
	var addrs []netip.Addr
	for _, ip := range result.IPs {
		addrs = append(addrs, ip.Address.Addr())
	}
	if p.addrs != nil && !slices.Equal(p.addrs, addrs) {
		n.t.Errorf("pod %s: ADD answered %v, and again %v\n%s", p.id, p.addrs, addrs, n.log())
	}
	p.addrs, n.pods[p.id] = addrs, p
	return nil
}

func (n *node) del(p *pod) error {
	_, err := n.call("DEL", p, nil)
	if err == nil {
		n.forget(p)
	}
	return err
}

// forget is what the runtime does once a pod is no more.
func (n *node) forget(p *pod) {
	delete(n.pods, p.id)
	p.addrs = nil
}

// gc has the runtime know of some pods only.
func (n *node) gc(known ...*pod) error {
	_, err := n.call("GC", nil, valid(known))
	if err == nil {
		for _, p := range n.pods {
			if !slices.Contains(known, p) {
				n.forget(p)
			}
		}
	}
	return err
}

// valid is what a runtime says in a GC.
func valid(known []*pod) map[string]any {
	all := []map[string]string{}
	for _, p := range known {
		all = append(all, map[string]string{"containerID": p.id, "ifname": "eth0"})
	}
	return map[string]any{"cni.dev/valid-attachments": all}
}

// must fails the test unless a call succeeds, after what a runtime would retry.
func (n *node) must(what string, f func() error) {
	n.t.Helper()
	n.eventually(what, f)
}

// toPod matches where a port of the node leads to, as nft writes it.
var toPod = regexp.MustCompile(`: \S+ \. 80\b`)

var linkName = regexp.MustCompile(`flock[0-9a-f]{8}`)

// settled says in what the node differs from what the runtime was told: links, routes, nexthops,
// neighbors, tables and records are those of the attached pods, and no others.
func (n *node) settled() error {
	want := map[string]*pod{}
	for _, p := range n.pods {
		want[wiring.HostIfName(p.id)] = p
	}
	only := func(what, text string, all bool) error {
		found := map[string]bool{}
		for _, name := range linkName.FindAllString(text, -1) {
			if found[name] = true; want[name] == nil {
				return fmt.Errorf("%s: there is something of %s, which is no pod's:\n%s", what, name, text)
			}
		}
		for name, p := range want {
			if all && !found[name] {
				return fmt.Errorf("%s: there is nothing of pod %s (%s):\n%s", what, p.id, name, text)
			}
		}
		return nil
	}
	has, err := n.kernel()
	if err != nil {
		return err
	}
	if err := only("links", has.links, true); err != nil {
		return err
	}
	if err := only("neighbors", has.neighbors, true); err != nil {
		return err
	}
	routes := strings.Join(slices.DeleteFunc(strings.SplitAfter(has.routes, "\n"), func(line string) bool {
		return slices.ContainsFunc(n.apart, func(a string) bool { return strings.HasPrefix(line, a+" ") })
	}), "")
	if err := only("routes", routes, true); err != nil {
		return err
	}
	wantRoutes := 2 // the summaries
	holders := map[netip.Addr]string{}
	for _, p := range n.pods {
		for _, a := range p.addrs {
			if slices.Contains(n.apart, a.String()) {
				continue
			}
			wantRoutes++
			if other := holders[a]; other != "" {
				return fmt.Errorf("%v is the address of pods %s and %s", a, other, p.id)
			}
			holders[a] = p.id
			if !strings.Contains("\n"+routes, fmt.Sprintf("\n%v dev %s ", a, wiring.HostIfName(p.id))) {
				return fmt.Errorf("there is no route to %v of pod %s:\n%s", a, p.id, routes)
			}
		}
	}
	if k := strings.Count(routes, "\n"); k != wantRoutes {
		return fmt.Errorf("%d routes, want %d:\n%s", k, wantRoutes, routes)
	}
	if has.nexthops != "" && n.apart == nil {
		return fmt.Errorf("nexthops: %s", has.nexthops)
	}
	tables := has.tables
	if err := only("tables", tables, true); err != nil {
		return err
	}
	ports := 0
	for _, p := range n.pods {
		if p.port == 0 {
			continue
		}
		ports++
		if !strings.Contains(tables, fmt.Sprintf("tcp . %d : %v . 80", p.port, p.addrs[1])) {
			return fmt.Errorf("host port %d of pod %s is not forwarded:\n%s", p.port, p.id, tables)
		}
	}
	if k := len(toPod.FindAllString(tables, -1)); k != 2*ports {
		return fmt.Errorf("%d host ports are forwarded, want %d:\n%s", k, 2*ports, tables)
	}
	entries, err := os.ReadDir(filepath.Join(n.state, "attachments"))
	if err != nil {
		return err
	}
	records := 0
	for _, e := range entries {
		if e.Name() == ".boot" {
			continue
		}
		id, _, _ := strings.Cut(e.Name(), "@")
		content, err := os.ReadFile(filepath.Join(n.state, "attachments", e.Name()))
		if err != nil {
			return err
		}
		if n.pods[id] == nil && strings.Contains(string(content), `"resting"`) {
			continue // its addresses were in quarantine at the start; the next ADD sees that it is over
		}
		records++
		if n.pods[id] == nil || !strings.Contains(string(content), `"committed"`) {
			return fmt.Errorf("record %s: %s", e.Name(), content)
		}
	}
	if records != len(n.pods) {
		return fmt.Errorf("%d records of %d pods", records, len(n.pods))
	}
	for _, p := range n.pods {
		if _, err := n.call("CHECK", p, map[string]any{"prevResult": prevResult(p)}); err != nil {
			return fmt.Errorf("pod %s: %w", p.id, err)
		}
	}
	return nil
}

func prevResult(p *pod) any {
	var ips []map[string]any
	for _, a := range p.addrs {
		ips = append(ips, map[string]any{"address": netip.PrefixFrom(a, a.BitLen()).String(), "interface": 1})
	}
	return map[string]any{"cniVersion": "1.1.0", "ips": ips, "interfaces": []map[string]any{
		{"name": wiring.HostIfName(p.id)}, {"name": "eth0", "sandbox": p.ns.Path()}}}
}

// stream sends a datagram every millisecond from one pod to another, and counts those that have
// not come.
type stream struct {
	mu             sync.Mutex // guards all below
	sent, received int
	stop           func()
}

func (n *node) stream(from, to *pod) *stream {
	n.t.Helper()
	var in *net.UDPConn
	var out net.Conn
	var err error
	at := netip.AddrPortFrom(to.addrs[0], 5300)
	to.ns.Run(func() { in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)) })
	if err != nil {
		n.t.Fatal(err)
	}
	raw, err := in.SyscallConn()
	if err != nil {
		n.t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { // on a busy machine the reader waits for a processor
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
			n.t.Error(err)
		}
	})
	from.ns.Run(func() { out, err = net.Dial("udp", at.String()) })
	if err != nil {
		n.t.Fatal(err)
	}
	s := &stream{}
	end := make(chan struct{})
	var sending, receiving sync.WaitGroup
	receiving.Go(func() {
		for b := make([]byte, 8); ; {
			if _, err := in.Read(b); err != nil {
				return
			}
			s.mu.Lock()
			s.received++
			s.mu.Unlock()
		}
	})
	sending.Go(func() {
		for tick := time.NewTicker(time.Millisecond); ; {
			select {
			case <-end:
				tick.Stop()
				return
			case <-tick.C:
			}
			s.mu.Lock()
			s.sent++
			s.mu.Unlock()
			out.Write([]byte("x"))
		}
	})
	s.stop = sync.OnceFunc(func() {
		close(end)
		sending.Wait()
		for deadline := time.Now().Add(10 * time.Second); s.missing() && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		in.Close()
		receiving.Wait()
		out.Close()
	})
	n.t.Cleanup(s.stop)
	return s
}

func (s *stream) missing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.received < s.sent
}

// unbroken fails the test if a packet was lost.
func (s *stream) unbroken(t testing.TB) {
	t.Helper()
	for few := true; few; time.Sleep(time.Millisecond) { // not to judge by none
		s.mu.Lock()
		few = s.sent < 10
		s.mu.Unlock()
	}
	s.stop()
	if s.received != s.sent {
		t.Errorf("of the running pods' %d packets %d came", s.sent, s.received)
	}
}

func linkOf(p *pod) string { return wiring.HostIfName(p.id) }
