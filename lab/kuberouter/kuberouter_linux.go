// Package kuberouter runs kube-router in a lab whose nodes have no other network plugin, for the
// test of the migration from it.
//
// It is built from its Go module. As Calico does without an overlay, it routes pods, announces
// their prefixes by BGP (GoBGP), and has NetworkPolicies in iptables and ipsets. It peers with
// the lab's router from the addresses and with the AS numbers that flock has later. Its pods have
// [plan.Node.OtherPods].
package kuberouter

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"path/filepath"
	"strings"
	"text/template"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/components"
	"flock.fritzlab.net/flock/lab/image"
	"flock.fritzlab.net/flock/lab/plan"
)

// Conflist is its configuration of the runtime, below /etc/cni/net.d.
const Conflist = "10-kuberouter.conflist"

// Bridge is the link that kube-router's pods are on, at each node.
const Bridge = "kube-bridge"

// bridgeMAC is the bridge's. It is on no link with another node's.
const bridgeMAC = "02:66:6c:00:00:02"

const ref = "kube-router:" + components.KubeRouter

//go:embed kuberouter.yaml
var manifest string

// Install deploys kube-router on the nodes that have no flock, and returns when its pods are
// Ready. That they are before they have their sessions with the router.
func Install(ctx context.Context, l *cluster.Lab) error {
	if err := components.Install(ctx, components.ForKubeRouter, l.Progress); err != nil {
		return err
	}
	bin, err := components.BuildKubeRouter(ctx, l.Checkout, l.Progress)
	if err != nil {
		return err
	}
	archive := l.Dir.Path("images", "kube-router.tar")
	if err := image.Write(archive, spec(bin)); err != nil {
		return err
	}
	if err := l.ImportImages("kube-router", archive); err != nil {
		return err
	}
	for _, n := range plan.Nodes(l.Nodes) {
		args := []string{"annotate", "--overwrite", "node", n.Name()}
		for key, value := range annotations(n, l.Families) {
			args = append(args, "kube-router.io/"+key+"="+value)
		}
		if _, err := l.Kubectl(ctx, "", args...); err != nil {
			return err
		}
	}
	text, err := render(l.Families)
	if err != nil {
		return err
	}
	if _, err := l.Kubectl(ctx, text, "apply", "--filename=-"); err != nil {
		return err
	}
	_, err = l.Kubectl(ctx, "", "--namespace=kube-system", "rollout", "status", "daemonset/kube-router", "--timeout=180s")
	return err
}

// spec is its image. The programs that it runs, iptables, ipset and ip, are the machine's, which
// the pod has at /usr.
func spec(bin string) image.Spec {
	entries := []image.Entry{
		image.File("/kube-router", filepath.Join(bin, components.KubeRouterProgram)),
		image.File("/cni/bridge", filepath.Join(bin, components.BridgePlugin)),
		image.File("/cni/host-local", filepath.Join(bin, "host-local")),
	}
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		entries = append(entries, image.Entry{Path: "/" + dir, Link: "usr/" + dir})
	}
	return image.Spec{Ref: ref, Entrypoint: []string{"/kube-router"}, Env: []string{"PATH=/usr/sbin:/usr/bin"}, Entries: entries}
}

// annotations are what kube-router knows of a node. It has a session with the router for each
// family, as flock has.
func annotations(n plan.Node, families plan.Families) map[string]string {
	var pods, own, peers, as []string
	for i, p := range families.Of(n.OtherPods()) {
		pods = append(pods, p.String())
		own = append(own, families.Of(n.LAN())[i].Addr().String())
		peers = append(peers, families.Of(plan.TorLAN)[i].Addr().String())
		as = append(as, fmt.Sprint(plan.TorAS))
	}
	all := func(values []string) string { return strings.Join(values, ",") }
	return map[string]string{
		"node.asn": fmt.Sprint(n.AS()), "pod-cidr": pods[len(pods)-1], "pod-cidrs": all(pods),
		"peer.ips": all(peers), "peer.localips": all(own), "peer.asns": all(as),
	}
}

func render(families plan.Families) (string, error) {
	var services []string
	for _, p := range families.Of(plan.Services) {
		services = append(services, p.String())
	}
	t, err := template.New("kuberouter.yaml").Option("missingkey=error").Parse(manifest)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	err = t.Execute(&b, map[string]any{
		"Image": ref, "Conflist": Conflist, "IPv6": families.IPv6(), "IPv4": families.IPv4(),
		"Services": strings.Join(services, ","), "BridgeMAC": bridgeMAC,
	})
	return b.String(), err
}
