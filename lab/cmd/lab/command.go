package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/components"
	"flock.fritzlab.net/flock/lab/conformance"
	"flock.fritzlab.net/flock/lab/demo"
	"flock.fritzlab.net/flock/lab/fabric"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/prove"
	"flock.fritzlab.net/flock/lab/state"
)

// command is the command line of lab.
func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "lab",
		Short: "A Kubernetes cluster with its routers on one machine",
		Long: `A Kubernetes cluster with its routers on one machine, for trying and testing flock.

Each node is a set of Linux namespaces with a containerd, a kubelet and a
kube-proxy of its own, and so are the control plane and the fabric:

  node1, node2, …   the nodes                                 AS 64601, 64602, …
  cp                etcd, API server, controllers, scheduler
  tor               the nodes' top-of-rack router, BIRD       AS 64512
  outside           a host behind tor, no part of the cluster

All of it lives in namespaces that the lab makes and removes: nothing is added to
the machine's own network, and nothing listens where others could reach it.`,
		Example: `  lab up                               bring it up, or repair what died
  lab kubectl get pods -A -o wide
  lab flockctl status
  lab exec tor -- birdc show protocols
  lab exec tor -- ip -6 route
  lab exec outside -- ping 2001:db8:0:1::11
  lab exec node1 -- bash
  lab down                             leave nothing behind`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if os.Geteuid() != 0 {
				return errors.New("the lab makes namespaces and mounts: run it as root")
			}
			return nil
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	name := root.PersistentFlags().String("name", "lab", "`name` of the lab; labs of different names live side by side")
	dir := func() (state.Dir, error) { return state.For(*name) }
	root.AddCommand(packagesCommand(), buildCommand(), upCommand(dir), proveCommand(dir), demoCommand(dir), conformanceCommand(dir), downCommand(dir), statusCommand(dir), execCommand(dir), kubectlCommand(name), flockctlCommand(name))
	return root
}

// load is the lab that was brought up last under the name.
func load(dir func() (state.Dir, error)) (*cluster.Lab, error) {
	d, err := dir()
	if err != nil {
		return nil, err
	}
	return cluster.Load(d)
}

func packagesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "packages",
		Short: "Install the Debian packages that the lab and the tests need",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return components.Install(cmd.Context(), slices.Concat(components.ForLab, components.ForTests), os.Stdout)
		},
	}
}

func buildCommand() *cobra.Command {
	var kubernetes string
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Get the programs that the lab runs",
		Long: `Installs missing Debian packages and builds Kubernetes, containerd and the
reference CNI plugins into a cache that all labs share. lab up does it too.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			release, err := components.ParseRelease(kubernetes)
			if err != nil {
				return err
			}
			checkout, err := findCheckout()
			if err != nil {
				return err
			}
			if err := components.Install(cmd.Context(), components.ForLab, os.Stdout); err != nil {
				return err
			}
			cache, err := components.Build(cmd.Context(), release, checkout, os.Stdout)
			if err == nil {
				fmt.Println(cache)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&kubernetes, "kubernetes", string(components.Newest), "which Kubernetes: "+string(components.Newest)+", or "+string(components.Oldest))
	return cmd
}

func upCommand(dir func() (state.Dir, error)) *cobra.Command {
	var want cluster.Settings
	var cni, families, routing, kubernetes string
	var patience time.Duration
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring the lab up as asked, from whatever state it is in",
		Long: `Brings the lab up as asked, from whatever state it is in: what is missing or died
is started, what changed is replaced (flock's image is built from the checkout),
what is right is left alone.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := dir()
			if err != nil {
				return err
			}
			if want.CNI, err = cluster.ParseCNI(cni); err != nil {
				return err
			}
			if want.Families, err = plan.ParseFamilies(families); err != nil {
				return err
			}
			if want.Routing, err = fabric.ParseRouting(routing); err != nil {
				return err
			}
			if want.Kubernetes, err = components.ParseRelease(kubernetes); err != nil {
				return err
			}
			if want.Nodes < 1 || want.Nodes > plan.MaxNodes {
				return fmt.Errorf("--nodes %d: want 1 to %d", want.Nodes, plan.MaxNodes)
			}
			if want.MTU < 1280 || want.MTU > 65535 {
				return fmt.Errorf("--mtu %d: want 1280, the least that IPv6 works with, to 65535", want.MTU)
			}
			if want.Checkout, err = findCheckout(); err != nil {
				return err
			}
			_, err = cluster.Up(cmd.Context(), d, want, patience, os.Stdout)
			return err
		},
	}
	cmd.Flags().IntVar(&want.Nodes, "nodes", 3, "number of nodes")
	cmd.Flags().IntVar(&want.MTU, "mtu", 1500, "MTU of all links between the lab's members")
	cmd.Flags().StringVar(&cni, "cni", string(cluster.Flock), "network plugin: flock, ptp, the reference plugin with static routes, or none, for one that you deploy")
	cmd.Flags().StringVar(&families, "families", string(plan.Dual), "address families of the cluster: dual (IPv6 first), ipv6, or ipv4")
	cmd.Flags().StringVar(&routing, "routing", string(fabric.BGP), "what flock and the router speak: bgp, or ospf")
	cmd.Flags().StringVar(&kubernetes, "kubernetes", string(components.Newest), "which Kubernetes: "+string(components.Newest)+" ("+components.Kubernetes+"), or "+string(components.Oldest)+" ("+components.OldestKubernetes+", the oldest that flock supports)")
	cmd.Flags().DurationVar(&patience, "timeout", 5*time.Minute, "how long to wait for the cluster, building not counted")
	return cmd
}

func proveCommand(dir func() (state.Dir, error)) *cobra.Command {
	var patience time.Duration
	cmd := &cobra.Command{
		Use:   "prove",
		Short: "Show that pods, router and outside host reach one another",
		Long: `Deploys six pods and a Service into namespace demo, shows nodes, BGP sessions or
OSPF neighbors, and pods, and proves: every pod reaches every other pod and the outside host, and the
outside host every pod, in both families and without address translation; the
Service works; the router has the nodes' summaries and no route per pod. Ends with
status 1 if one of that does not hold.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := load(dir)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), patience, fmt.Errorf("gave up after %s", patience))
			defer cancel()
			return prove.Run(ctx, l, os.Stdout)
		},
	}
	cmd.Flags().DurationVar(&patience, "timeout", 2*time.Minute, "how long to wait for pods and router")
	return cmd
}

func demoCommand(dir func() (state.Dir, error)) *cobra.Command {
	var want demo.Settings
	cmd := &cobra.Command{
		Use:   "demo " + strings.Join(demo.Names, "|"),
		Short: "Show what flock does with requests from outside while pods come and go",
		Long: `Deploys pods into namespace show, has the outside host ask them every 20 ms over new
connections, and shows nodes, sessions, pods and answers while something happens:

  anycast   an address on three nodes: a pod becomes not Ready, another is deleted
  policy    a NetworkPolicy closes a pod, and is deleted
  failure   a node is cut off without a link going down, and BFD sees it
  service   a Service's address: an endpoint becomes not Ready, another is deleted

It ends with a line of figures, and leaves the lab as it was.`,
		Example: `  lab demo anycast
  lab demo anycast --record out/anycast       # out/anycast.cast (asciinema) and out/anycast.svg
  lab demo anycast --listen 127.0.0.1:8088    # the same view for a browser`,
		Args: cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs), ValidArgs: demo.Names,
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := load(dir)
			if err != nil {
				return err
			}
			want.Name, want.Terminal = args[0], term.IsTerminal(int(os.Stdout.Fd()))
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), 5*time.Minute, errors.New("gave up after 5 minutes"))
			defer cancel()
			return demo.Run(ctx, l, want, os.Stdout)
		},
	}
	cmd.Flags().StringVar(&want.Record, "record", "", "write what was shown to `NAME`.cast, for asciinema, and NAME.svg")
	cmd.Flags().StringVar(&want.Listen, "listen", "", "`address` on the loopback of a page with the same view")
	return cmd
}

func conformanceCommand(dir func() (state.Dir, error)) *cobra.Command {
	var want conformance.Settings
	const kubernetes, policyAPI = "kubernetes", "network-policy-api"
	suite := kubernetes
	cmd := &cobra.Command{
		Use:   "conformance",
		Short: "Run Kubernetes' own end-to-end tests in the lab",
		Long: `Runs Kubernetes' own end-to-end tests, unmodified, in the lab, and prints which
failed and how many passed. What they need is built into the cache the first
time. Ends with status 1 if a test fails.

--suite network-policy-api runs the conformance tests of ClusterNetworkPolicy,
experimental ones included, and leaves its CRD in the lab. As the kernel may lack
SCTP, the servers and clients of SCTP in their pods are a substitute.`,
		Example: `  lab conformance --focus NetworkPolicy --skip SCTPConnectivity
  lab conformance --load-balancers --focus LoadBalancers --skip finalizer
  lab conformance --suite network-policy-api --focus AdminTier`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := load(dir)
			if err != nil {
				return err
			}
			if want.Out, err = filepath.Abs(want.Out); err != nil {
				return err
			}
			switch suite {
			case kubernetes:
				return conformance.Run(cmd.Context(), l, want, os.Stdout)
			case policyAPI:
				if !cmd.Flags().Changed("focus") {
					want.Focus = "."
				}
				return conformance.RunPolicyAPI(cmd.Context(), l, want, os.Stdout)
			}
			return fmt.Errorf("--suite %s: want %s or %s", suite, kubernetes, policyAPI)
		},
	}
	cmd.Flags().StringVar(&suite, "suite", kubernetes, "whose `tests`: "+kubernetes+" or "+policyAPI)
	cmd.Flags().StringVar(&want.Focus, "focus", `\[sig-network\].*\[Conformance\]`, "run the tests with names that match this `regex`; all of network-policy-api's by default")
	cmd.Flags().StringVar(&want.Skip, "skip", "", "except those that match this `regex`")
	cmd.Flags().BoolVar(&want.LoadBalancers, "load-balancers", false, "have flock-controller give addresses to Services without a class, from an AddressPool for all namespaces; the lab stays so")
	cmd.Flags().IntVar(&want.Procs, "procs", 3, "how many tests run at the same time")
	cmd.Flags().DurationVar(&want.Timeout, "timeout", 2*time.Hour, "how long the tests may take altogether")
	cmd.Flags().StringVar(&want.Out, "out", "out/conformance", "`directory` for log and results, which is replaced")
	return cmd
}

func downCommand(dir func() (state.Dir, error)) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End the lab and leave nothing behind",
		Long: `Ends every process of the lab, pods included, and removes its namespaces, links,
mounts, cgroups and files, however little is left of it. The built programs stay
in the cache.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			d, err := dir()
			if err != nil {
				return err
			}
			began := time.Now()
			if err := cluster.Down(d); err != nil {
				return err
			}
			fmt.Printf("%5.1f s  lab %s is down\n", time.Since(began).Seconds(), d.Lab())
			return nil
		},
	}
}

func statusCommand(dir func() (state.Dir, error)) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the lab's processes with their logs, nodes and router",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := load(dir)
			if err != nil {
				return err
			}
			return l.Status(cmd.Context(), os.Stdout)
		},
	}
}

func execCommand(dir func() (state.Dir, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec MEMBER -- COMMAND [ARG…]",
		Short: "Run a command on a node, the router or another member",
		Example: `  lab exec node1 -- ip route
  lab exec node1 -- ctr -n k8s.io tasks ls
  lab exec cp -- bash`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return errors.New("exec: want a member and a command, as in lab exec node1 -- ip route; lab status names the members")
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := load(dir)
			if err != nil {
				return err
			}
			argv := args[1:]
			if argv[0] == "--" && len(argv) > 1 {
				argv = argv[1:]
			}
			c, err := l.Command(args[0], argv...)
			if err != nil {
				return err
			}
			return run(c)
		},
	}
	// Flags behind the member belong to the command.
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func kubectlCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl [ARG…]",
		Short: "Run kubectl as the cluster's administrator",
		Example: `  lab kubectl get nodes -o wide
  lab --name test kubectl get pods`,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			args = takeName(name, args)
			l, err := load(func() (state.Dir, error) { return state.For(*name) })
			if err != nil {
				return err
			}
			return run(l.KubectlCommand(args...))
		},
	}
}

func flockctlCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "flockctl [ARG…]",
		Short: "Run the checkout's flockctl as the cluster's administrator",
		Example: `  lab flockctl status
  lab --name test flockctl anycast`,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			args = takeName(name, args)
			l, err := load(func() (state.Dir, error) { return state.For(*name) })
			if err != nil {
				return err
			}
			checkout, err := findCheckout()
			if err != nil {
				return err
			}
			program := l.Dir.Path("flockctl")
			build := exec.Command("go", "build", "-trimpath", "-o", program, "./cmd/flockctl")
			build.Dir = checkout
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				return fmt.Errorf("build flockctl: %w: %s", err, out)
			}
			c, err := l.Command(plan.ControlPlane, append([]string{program}, args...)...)
			if err != nil {
				return err
			}
			return run(c)
		},
	}
}

// takeName takes --name, which lands among the arguments of a command that parses no
// flags if it comes before the command.
func takeName(name *string, args []string) []string {
	if len(args) > 0 && strings.HasPrefix(args[0], "--name=") {
		*name, args = strings.TrimPrefix(args[0], "--name="), args[1:]
	} else if len(args) > 1 && args[0] == "--name" {
		*name, args = args[1], args[2:]
	}
	return args
}

// exitStatus is that of a command that was run for the user, and has said itself
// what was wrong.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// run gives the command this program's terminal.
func run(c *exec.Cmd) error {
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := c.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		return exitStatus(128 + int(s.Signal())) // as a shell says it; a closed pipe, say, is no news
	}
	return exitStatus(exit.ExitCode())
}

// findCheckout looks for flock's source tree above the working directory, then
// above this program, which is built to bin/.
func findCheckout() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	for _, start := range []string{wd, filepath.Dir(self)} {
		for dir := start; ; dir = filepath.Dir(dir) {
			if _, err := os.Stat(filepath.Join(dir, "lab", "go.mod")); err == nil {
				return dir, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return "", fmt.Errorf("neither %s nor %s is in a checkout of flock: the lab builds its images from one, run it there", wd, self)
}
