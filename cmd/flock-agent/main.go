//go:build linux

// Command flock-agent is everything flock does on a node: it answers the CNI
// plugin, wires pods, keeps the node's routes and renders the routing daemon's
// configuration.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"k8s.io/klog/v2"

	"flock.fritzlab.net/flock/pkg/agent"
	"flock.fritzlab.net/flock/pkg/exits"
	"flock.fritzlab.net/flock/pkg/pods"
	"flock.fritzlab.net/flock/pkg/version"
)

const usage = `flock-agent serves the pods of one node.

It runs in the node's own network namespace (the DaemonSet in deploy/ does
this), waits for the NodeConfig that is named after the node, and then answers
the CNI plugin on the socket in the state directory. While it is away, running
pods and the routes of the node stay as they are.

Flags:
`

func main() {
	var c agent.Config
	var level slog.Level
	var showVersion bool
	flag.StringVar(&c.NodeName, "node-name", os.Getenv("NODE_NAME"), "name of this node's Node and NodeConfig objects (default: $NODE_NAME)")
	flag.StringVar(&c.Namespace, "namespace", "flock-system", "namespace of flock's own objects: the Secrets with the passwords that are shared with routers")
	addresses := func(s string) error {
		c.NodeAddresses = nil
		for field := range strings.SplitSeq(s, ",") {
			addr, err := netip.ParseAddr(field)
			if err != nil {
				return fmt.Errorf("%q is no IP address: want the node's InternalIPs, separated by commas", field)
			}
			c.NodeAddresses = append(c.NodeAddresses, addr)
		}
		return nil
	}
	flag.Func("node-addresses", "the Node's InternalIPs, from which BGP sessions come where a router is on their subnet, separated by commas (default: $NODE_ADDRESSES)", addresses)
	flag.StringVar(&c.StateDir, "state-dir", "/run/flock", "directory for the socket, the attachments and BIRD's configuration; must not outlive a reboot")
	flag.StringVar(&c.Kubeconfig, "kubeconfig", "", "path to a kubeconfig; empty: the service account of the pod that the agent runs in")
	flag.StringVar(&c.PodsAPI, "pods-api", pods.DefaultSocket, "socket of the kubelet's Pods API (Kubernetes 1.37 and later); while it does not answer, pods are learned from the API server; empty: always from there")
	c.ExitSources = exits.AllWays
	flag.Func("exit-sources", "who tells of a crash before the kubelet does, in order of preference, separated by commas: containerd (its own events, after some 3 ms), cri (those of any runtime, some 50 ms); none: the kubelet's pace, up to a second (default \"containerd,cri\")", func(s string) (err error) {
		c.ExitSources, err = exits.ParseWays(s)
		return err
	})
	c.RuntimeSockets = exits.DefaultSockets
	flag.Func("runtime-sockets", "sockets of the container runtime, for --exit-sources, tried in order, separated by commas (default \""+strings.Join(exits.DefaultSockets, ",")+"\")", func(s string) error {
		c.RuntimeSockets = strings.Split(s, ",")
		return nil
	})
	flag.StringVar(&c.HealthAddress, "health-address", "127.0.0.1:9479", "address and port on which /healthz, /readyz and /metrics (Prometheus) answer; empty: none")
	flag.TextVar(&level, "log-level", slog.LevelInfo, "least level that is logged: debug, info, warn or error")
	flag.BoolVar(&showVersion, "version", false, "print the version and end")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	if env := os.Getenv("NODE_ADDRESSES"); env != "" && c.NodeAddresses == nil {
		if err := addresses(env); err != nil {
			fmt.Fprintf(os.Stderr, "flock-agent: NODE_ADDRESSES=%q: %v\n", env, err)
			os.Exit(2)
		}
	}
	if showVersion {
		fmt.Println(version.Version)
		return
	}
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "flock-agent: unexpected argument %q; see --help\n", flag.Arg(0))
		os.Exit(2)
	}

	c.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	klog.SetSlogLogger(c.Log) // client-go's words are lines like all others
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := agent.Run(ctx, c); err != nil {
		c.Log.Error(err.Error())
		os.Exit(1)
	}
}
