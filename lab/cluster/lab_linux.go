// Package cluster puts a lab together from members, fabric and processes: a
// Kubernetes cluster as it runs in production, less what only a real machine has.
//
// Up brings the lab from whatever state it is in to the one that is asked for and
// leaves alone what is right already; so it is also how one repairs a lab. Down
// takes everything away. Both work on a lab of which only parts are left.
package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/lab/components"
	"flock.fritzlab.net/flock/lab/fabric"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/pki"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
	"flock.fritzlab.net/flock/lab/state"
)

// Settings are what a lab was asked to be.
type Settings struct {
	Nodes int `json:"nodes"`
	MTU   int `json:"mtu"`
	CNI   CNI `json:"cni"`
	// Families are those of the cluster.
	Families plan.Families `json:"families"`
	// Routing is what router and nodes speak, BGP if empty. With PTP they do not.
	Routing fabric.Routing `json:"routing"`
	// Kubernetes is which one the lab runs, the newest if empty.
	Kubernetes components.Release `json:"kubernetes,omitempty"`
	// Checkout is the source tree that flock's image and manifests are from.
	Checkout string `json:"checkout"`
	// Boot is the machine's boot id: no lab outlives it.
	Boot string `json:"boot"`
}

// Lab is a lab that is up or to be brought up.
type Lab struct {
	Dir state.Dir
	Settings
	// Programs is the directory of the components.
	Programs string
	// Progress gets a line for each step.
	Progress io.Writer

	began time.Time
}

// Load is the lab that was brought up last under the directory's name.
func Load(dir state.Dir) (*Lab, error) {
	content, err := os.ReadFile(settingsFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no lab %s: run lab up", dir.Lab())
	}
	if err != nil {
		return nil, err
	}
	l := &Lab{Dir: dir, Progress: io.Discard}
	if err := json.Unmarshal(content, &l.Settings); err != nil {
		return nil, fmt.Errorf("%s: %w: run lab down, then lab up", settingsFile(dir), err)
	}
	if l.Boot != bootID() {
		return nil, fmt.Errorf("lab %s ended when the machine was restarted: run lab up for a new one", dir.Lab())
	}
	l.Programs, err = components.Cache(l.Kubernetes)
	return l, err
}

func settingsFile(dir state.Dir) string { return dir.Path("settings.json") }

func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		panic(err) // there is no Linux without it
	}
	return strings.TrimSpace(string(id))
}

// lockPatience is how long up and down wait for one another.
const lockPatience = 2 * time.Minute

// Up brings a lab up as the settings say. It waits as long as patience for the
// cluster; building what it runs may take longer.
func Up(ctx context.Context, dir state.Dir, want Settings, patience time.Duration, progress io.Writer) (*Lab, error) {
	l := &Lab{Dir: dir, Settings: want, Progress: progress, began: time.Now()}
	l.Boot = bootID()
	if err := components.Install(ctx, components.ForLab, progress); err != nil {
		return nil, err
	}
	var err error
	if l.Programs, err = components.Build(ctx, l.Kubernetes, l.Checkout, progress); err != nil {
		return nil, err
	}
	if err := dropOtherBoot(dir); err != nil {
		return nil, err
	}
	unlock, err := dir.Lock(lockPatience)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := l.sameCluster(); err != nil {
		return nil, err
	}
	settings, err := json.MarshalIndent(l.Settings, "", "  ")
	if err != nil {
		return nil, err
	}
	if _, err := dir.Write(settingsFile(dir), settings, 0o644); err != nil {
		return nil, err
	}
	l.say("images: build from %s", l.Checkout)
	images, err := l.buildImages(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("gave up after %s", patience))
	defer cancel()
	return l, l.up(ctx, images)
}

// dropOtherBoot removes what a lab left on disk before the machine's restart.
func dropOtherBoot(dir state.Dir) error {
	content, err := os.ReadFile(settingsFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var old Settings
	if err != nil || json.Unmarshal(content, &old) != nil || old.Boot != bootID() {
		return Down(dir)
	}
	return nil
}

// sameCluster refuses what a running cluster cannot be changed to.
func (l *Lab) sameCluster() error {
	old, err := Load(l.Dir)
	switch {
	case err != nil:
		return nil
	case old.CNI != l.CNI:
		return fmt.Errorf("lab %s runs with --cni %s, and %s would not know its pods: run lab down first, or use another --name", l.Dir.Lab(), old.CNI, l.CNI)
	case cmp.Or(old.Families, plan.Dual) != cmp.Or(l.Families, plan.Dual):
		return fmt.Errorf("lab %s runs with --families %s, and its Services keep theirs: run lab down first, or use another --name", l.Dir.Lab(), old.Families)
	case cmp.Or(old.Kubernetes, components.Newest) != cmp.Or(l.Kubernetes, components.Newest):
		return fmt.Errorf("lab %s runs with --kubernetes %s, and its objects are of that version: run lab down first, or use another --name", l.Dir.Lab(), cmp.Or(old.Kubernetes, components.Newest))
	}
	return nil
}

func (l *Lab) up(ctx context.Context, images []imageFile) error {
	nodes := plan.Nodes(l.Nodes)
	l.say("namespaces, links and router")
	if err := l.members(ctx, nodes); err != nil {
		return err
	}
	if err := fabric.Links(l.Dir, nodes, l.MTU); err != nil {
		return err
	}
	if err := l.router(ctx, nodes); err != nil {
		return err
	}

	if err := l.outside(); err != nil {
		return err
	}

	l.say("control plane and container runtimes")
	ca, err := pki.Open(l.Dir.Path("pki"))
	if err != nil {
		return err
	}
	starts := []func() error{func() error { return l.controlPlane(ctx, ca) }}
	for _, n := range nodes {
		starts = append(starts, func() error { return l.runtime(ctx, n, images) })
	}
	if err := together(starts...); err != nil {
		return err
	}

	l.say("nodes: kubelet and kube-proxy")
	kubelets := make([]*process.Process, len(nodes))
	for i, n := range nodes {
		if kubelets[i], err = l.kubelet(ca, n); err != nil {
			return err
		}
	}
	client, err := l.Client()
	if err != nil {
		return err
	}
	if err := l.deployDNS(ctx); err != nil {
		return err
	}
	switch l.CNI {
	case None:
		err := process.Await(ctx, "the nodes to register", kubelets, func(ctx context.Context) error {
			for _, n := range nodes {
				if _, err := client.CoreV1().Nodes().Get(ctx, n.Name(), metav1.GetOptions{}); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			l.say("lab %s is up: %d nodes without a network plugin", l.Dir.Lab(), l.Nodes)
		}
		return err
	case Flock:
		l.say("flock: deploy")
		if err := l.deployFlock(ctx, client, nodes, images); err != nil {
			return err
		}
	}
	err = process.Await(ctx, "the nodes to be Ready", kubelets, func(ctx context.Context) error { return nodesReady(ctx, client, nodes, kubelets) })
	if err != nil {
		return err
	}
	if err := process.Await(ctx, "the cluster's name server", nil, func(ctx context.Context) error { return dnsReady(ctx, client) }); err != nil {
		return err
	}
	l.say("lab %s is up: %d nodes Ready", l.Dir.Lab(), l.Nodes)
	return nil
}

// members makes those that are missing and removes nodes beyond the number asked
// for, from the cluster too if its API server answers.
func (l *Lab) members(ctx context.Context, nodes []plan.Node) error {
	want := plan.Members(nodes)
	have, err := member.List(l.Dir)
	if err != nil {
		return err
	}
	for _, name := range have {
		if slices.Contains(want, name) {
			continue
		}
		l.say("remove %s", name)
		if client, err := l.Client(); err == nil && l.apiReady(ctx) == nil {
			if err := client.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
				l.say("node %s stays in the cluster: %v", name, err)
			}
		}
		if err := member.Of(l.Dir, name).Remove(); err != nil {
			return err
		}
		if err := fabric.Unplug(l.Dir, name); err != nil {
			return err
		}
	}
	for _, name := range want {
		if _, err := member.Of(l.Dir, name).Create(); err != nil {
			return err
		}
	}
	return nil
}

// router runs BIRD on the top-of-rack router and has it take a new configuration
// without dropping sessions.
func (l *Lab) router(ctx context.Context, nodes []plan.Node) error {
	tor := member.Of(l.Dir, plan.Tor)
	config := l.Dir.Member(plan.Tor, "config", "bird.conf")
	changed, err := l.Dir.Write(config, []byte(fabric.BirdConfig(nodes, l.Families, l.routing())), 0o644)
	if err != nil {
		return err
	}
	if out, err := l.command(tor, "mkdir", "-p", "/run/bird").CombinedOutput(); err != nil {
		return fmt.Errorf("make /run/bird on %s: %w: %s", plan.Tor, err, out)
	}
	bird, started, err := process.Ensure(process.Spec{Member: tor, Name: "bird", Path: l.Programs, Argv: []string{"bird", "-f", "-c", config}})
	if err != nil {
		return err
	}
	return process.Await(ctx, "the router's BIRD", []*process.Process{bird}, func(context.Context) error {
		ask := []string{"birdc", "show", "status"}
		if changed && !started {
			ask = []string{"birdc", "configure"}
		}
		out, err := l.command(tor, ask...).CombinedOutput()
		if err == nil && !slices.ContainsFunc([]string{"Daemon is up", "Reconfigur"}, func(s string) bool { return strings.Contains(string(out), s) }) {
			err = fmt.Errorf("%s: %s", strings.Join(ask, " "), strings.TrimSpace(string(out)))
		}
		return err
	})
}

// Sessions are the router's with the nodes: of BGP, or its neighbors by OSPF; none
// where it has static routes.
func (l *Lab) Sessions() ([]fabric.Session, error) {
	if l.routing() != fabric.OSPF {
		out, err := l.birdc("show", "protocols", "all")
		return fabric.ParseSessions(out), err
	}
	var sessions []fabric.Session
	for family, instance := range fabric.OSPFInstances(l.Families) {
		out, err := l.birdc("show", "ospf", "neighbors", instance)
		if err != nil {
			return nil, err
		}
		sessions = append(sessions, fabric.ParseNeighbors(out, family, plan.Nodes(l.Nodes))...)
	}
	return sessions, nil
}

// birdc asks the router's BIRD.
func (l *Lab) birdc(args ...string) (string, error) {
	out, err := l.command(member.Of(l.Dir, plan.Tor), append([]string{"birdc"}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("birdc %s on %s: %w: %s", strings.Join(args, " "), plan.Tor, err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// EchoPort is where the test pods and the outside host answer by HTTP.
const EchoPort = 8080

// outside runs the test pods' server on the outside host.
func (l *Lab) outside() error {
	echo := l.Dir.Path("images", "bin", "echo")
	_, err := l.ensure(process.Spec{
		Member: member.Of(l.Dir, plan.Outside), Name: "echo", Inputs: []string{echo},
		Argv: []string{echo, "serve", "-listen", fmt.Sprintf(":%d", EchoPort)},
		Env:  []string{"POD_NAME=" + plan.Outside},
	})
	return err
}

// ensure runs one of the lab's own programs.
func (l *Lab) ensure(spec process.Spec) (*process.Process, error) {
	spec.Path = l.Programs
	p, _, err := process.Ensure(spec)
	return p, err
}

// KubectlCommand is kubectl as administrator, run where the API server is.
func (l *Lab) KubectlCommand(args ...string) *exec.Cmd {
	cmd := l.command(member.Of(l.Dir, plan.ControlPlane), append([]string{"kubectl"}, args...)...)
	cmd.Env = append(cmd.Env, l.administrator()...)
	return cmd
}

// administrator is the environment of kubectl and helm as administrator. They would keep what they
// cache in the home directory, outside of the lab.
func (l *Lab) administrator() []string {
	return []string{"KUBECONFIG=" + l.kubeconfig("admin"), "KUBECACHEDIR=" + l.Dir.Path("kubectl")}
}

// Command runs argv in a member of the lab.
func (l *Lab) Command(name string, argv ...string) (*exec.Cmd, error) {
	m := member.Of(l.Dir, name)
	if members := plan.Members(plan.Nodes(l.Nodes)); !slices.Contains(members, name) {
		return nil, fmt.Errorf("there is no %q in lab %s: want one of %s", name, l.Dir.Lab(), strings.Join(members, ", "))
	}
	if !m.Exists() {
		return nil, fmt.Errorf("%s of lab %s is gone: run lab up", name, l.Dir.Lab())
	}
	cmd := l.command(m, argv...)
	cmd.Env = append(cmd.Env, l.administrator()...)
	return cmd, nil
}

func (l *Lab) say(format string, args ...any) {
	fmt.Fprintf(l.Progress, "%5.1f s  %s\n", time.Since(l.began).Seconds(), fmt.Sprintf(format, args...))
}

// together runs all at the same time and returns what went wrong.
func together(all ...func() error) error {
	errs := make([]error, len(all))
	var running sync.WaitGroup
	for i, f := range all {
		running.Go(func() { errs[i] = f() })
	}
	running.Wait()
	return errors.Join(errs...)
}

// Down removes the lab and everything of it, in whatever state it is.
func Down(dir state.Dir) error {
	unlock, err := dir.Lock(lockPatience)
	if err != nil {
		return err
	}
	defer unlock()
	return member.RemoveAll(dir)
}
