package components

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Package is one of Debian's, with a program by which one sees that it is there.
type Package struct{ name, program string }

// ForLab is what the lab runs.
var ForLab = []Package{
	{"etcd-server", "etcd"},
	{"runc", "runc"},
	{"bird2", "bird"},
	{"nftables", "nft"},
	{"iptables", "iptables-nft-restore"}, // for the kube-proxy of the oldest Kubernetes
	{"iproute2", "ip"},
	{"iputils-ping", "ping"},
	{"tcpdump", "tcpdump"},
	{"conntrack", "conntrack"},
	{"mount", "mount"},
}

// ForTests is what flock's own tests need beside that: the routers that they
// hold it against, and what reads its metrics and its page.
var ForTests = []Package{
	{"frr", "/usr/lib/frr/bgpd"},
	{"gobgpd", "gobgpd"},
	{"procps", "ps"},
	{"iptables", "iptables-legacy"},
	{"systemd", "/lib/systemd/systemd-networkd"},
	{"util-linux", "setpriv"},
	{"prometheus", "promtool"},
	{"chromium-headless-shell", "chromium-headless-shell"},
}

// ForKubeRouter is what kube-router runs.
var ForKubeRouter = []Package{{"iptables", "iptables"}, {"ipset", "ipset"}}

// Install installs those of packages that are missing. Their services are not
// started: the lab runs the programs itself, in its own namespaces.
func Install(ctx context.Context, packages []Package, progress io.Writer) error {
	var names []string
	for _, p := range packages {
		if _, err := exec.LookPath(p.program); err != nil {
			names = append(names, p.name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	list := strings.Join(names, " ")
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("these programs are missing and there is no apt-get to install them with: install what Debian 12 calls %s", list)
	}
	start := time.Now()
	fmt.Fprintf(progress, "install with apt: %s … ", list)
	allow, err := forbidServices()
	if err != nil {
		return err
	}
	install := append([]string{"install", "--yes", "--no-install-recommends"}, names...)
	out, err := apt(ctx, install)
	if err != nil {
		// The lists of a fresh machine are old or absent.
		if out, err = apt(ctx, []string{"update"}); err == nil {
			out, err = apt(ctx, install)
		}
	}
	if err = errors.Join(err, allow()); err != nil {
		fmt.Fprintln(progress, "failed")
		return fmt.Errorf("apt-get install %s: %w\n%s", list, err, out)
	}
	fmt.Fprintf(progress, "%.0f s\n", time.Since(start).Seconds())
	return nil
}

func apt(ctx context.Context, args []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	return cmd.CombinedOutput()
}

// forbidServices keeps Debian's maintainer scripts from starting services
// (invoke-rc.d(8)) until allow is called. A machine with a policy of its own
// keeps it.
func forbidServices() (allow func() error, err error) {
	const policy = "/usr/sbin/policy-rc.d"
	f, err := os.OpenFile(policy, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return func() error { return nil }, nil
	}
	if err != nil {
		return nil, err
	}
	_, err = f.WriteString("#!/bin/sh\nexit 101\n")
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return func() error { return os.Remove(policy) }, nil
}
