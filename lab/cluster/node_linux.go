package cluster

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"

	"flock.fritzlab.net/flock/lab/components"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/pki"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
)

// configs are the components' configurations, as they read on a node of its own:
// /run, /var and /etc are the member's.
//
//go:embed config
var configs embed.FS

func render(name string, data any) ([]byte, error) {
	t, err := template.New(name).Option("missingkey=error").ParseFS(configs, "config/"+name)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, data)
	return b.Bytes(), err
}

// runtime starts the node's containerd and gives it the images. It needs no API
// server.
func (l *Lab) runtime(ctx context.Context, node plan.Node, images []imageFile) error {
	m := member.Of(l.Dir, node.Name())
	config, err := l.nodeConfig(node, "containerd.toml", map[string]any{"PauseImage": pauseImage})
	if err != nil {
		return err
	}
	if l.CNI == PTP {
		if err := l.installPTP(node); err != nil {
			return err
		}
	}
	containerd, err := l.ensure(process.Spec{
		Member: m, Name: "containerd", Inputs: []string{config},
		Argv: []string{"containerd", "--config", config, "--log-level", "info"},
	})
	if err != nil {
		return err
	}
	err = process.Await(ctx, "containerd on "+node.Name(), []*process.Process{containerd}, func(ctx context.Context) error {
		_, err := l.ctr(m, "version")
		return err
	})
	if err != nil {
		return err
	}
	for _, i := range images {
		if err := l.importImage(m, i); err != nil {
			return err
		}
	}
	return nil
}

// kubelet starts the node's kubelet and kube-proxy, and returns the kubelet.
func (l *Lab) kubelet(ca *pki.Authority, node plan.Node) (*process.Process, error) {
	m := member.Of(l.Dir, node.Name())
	var addrs []netip.Addr
	var own, dns, nodePorts, clusterCIDRs []string
	for _, p := range l.Families.Of(node.LAN()) {
		addrs = append(addrs, p.Addr())
		own = append(own, p.Addr().String())
		nodePorts = append(nodePorts, fmt.Sprintf("%q", p.Masked()))
	}
	for _, p := range l.Families.Of(plan.Addresses{IPv6: netip.MustParsePrefix("::1/128"), IPv4: netip.MustParsePrefix("127.0.0.0/8")}) {
		nodePorts = append(nodePorts, fmt.Sprintf("%q", p))
	}
	for _, p := range l.Families.Of(plan.Services) {
		dns = append(dns, fmt.Sprintf("%q", plan.DNS(p)))
	}
	for _, p := range l.Families.Of(plan.AllPods) {
		clusterCIDRs = append(clusterCIDRs, p.String())
	}
	if err := ca.Client(node.Name(), "system:node:"+node.Name(), "system:nodes"); err != nil {
		return nil, err
	}
	serving := node.Name() + "-kubelet"
	if err := ca.Server(serving, []string{node.Name()}, addrs); err != nil {
		return nil, err
	}
	if err := l.writeKubeconfig(ca, node.Name()); err != nil {
		return nil, err
	}
	config, err := l.nodeConfig(node, "kubelet.yaml", map[string]any{
		"CA": ca.CA(), "Cert": ca.Cert(serving), "Key": ca.Key(serving), "StartupTaint": l.CNI.startupTaint(),
		"DNS": strings.Join(dns, ", "),
	})
	if err != nil {
		return nil, err
	}
	kubelet, err := l.ensure(process.Spec{
		Member: m, Name: "kubelet", Inputs: []string{config, l.kubeconfig(node.Name())},
		Argv: []string{
			"kubelet",
			"--config=" + config,
			"--kubeconfig=" + l.kubeconfig(node.Name()),
			"--hostname-override=" + node.Name(),
			"--node-ip=" + strings.Join(own, ","),
			"--node-labels=topology.kubernetes.io/zone=" + node.Zone(),
		},
	})
	if err != nil {
		return nil, err
	}
	config, err = l.nodeConfig(node, "kube-proxy.yaml", map[string]any{
		"Node": node.Name(), "Kubeconfig": l.kubeconfig("kube-proxy"), "PodInterfacePrefix": l.CNI.podInterfacePrefix(),
		"ClusterCIDR":       strings.Join(clusterCIDRs, ","),
		"NodePortAddresses": strings.Join(nodePorts, ", "), "Oldest": l.Kubernetes == components.Oldest,
	})
	if err != nil {
		return nil, err
	}
	_, err = l.ensure(process.Spec{
		Member: m, Name: "kube-proxy", Inputs: []string{config, l.kubeconfig("kube-proxy")},
		Argv: []string{"kube-proxy", "--config=" + config},
	})
	return kubelet, err
}

// nodeConfig renders a configuration for the node and names the file.
func (l *Lab) nodeConfig(node plan.Node, name string, data any) (string, error) {
	content, err := render(name, data)
	if err != nil {
		return "", err
	}
	file := l.Dir.Member(node.Name(), "config", name)
	_, err = l.Dir.Write(file, content, 0o644)
	return file, err
}

// installPTP puts the reference plugins and their configuration where flock's
// installer would put flock.
func (l *Lab) installPTP(node plan.Node) error {
	for _, plugin := range []string{"ptp", "host-local"} {
		content, err := os.ReadFile(filepath.Join(l.Programs, plugin))
		if err != nil {
			return err
		}
		if _, err := l.Dir.Write(l.Dir.Member(node.Name(), "cni", "bin", plugin), content, 0o755); err != nil {
			return err
		}
	}
	content, err := render("ptp.conflist", map[string]any{"MTU": l.MTU, "Pods": l.Families.Of(node.Pods())})
	if err != nil {
		return err
	}
	_, err = l.Dir.Write(l.Dir.Member(node.Name(), "cni", "net.d", "10-ptp.conflist"), content, 0o644)
	return err
}

// importImage gives the image to the node's containerd unless it has it.
func (l *Lab) importImage(m member.Member, i imageFile) error {
	note := l.Dir.Member(m.Name(), "run", "images", i.name)
	if have, err := os.ReadFile(note); err == nil && string(have) == i.digest {
		return nil
	}
	if out, err := l.ctr(m, "images", "import", "--local", i.path); err != nil {
		return fmt.Errorf("import image %s on %s: %w: %s", i.name, m.Name(), err, strings.TrimSpace(string(out)))
	}
	_, err := l.Dir.Write(note, []byte(i.digest), 0o644)
	return err
}

// ctr runs containerd's client on a node.
func (l *Lab) ctr(m member.Member, args ...string) ([]byte, error) {
	return l.command(m, append([]string{"ctr", "--address", "/run/containerd/containerd.sock", "--namespace", "k8s.io"}, args...)...).CombinedOutput()
}

// command runs one of the lab's programs, or of the machine's, in a member.
func (l *Lab) command(m member.Member, argv ...string) *exec.Cmd {
	return m.Command(l.Programs, argv...)
}
