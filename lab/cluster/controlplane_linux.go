package cluster

import (
	"context"
	"net/netip"
	"os"
	"strings"

	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/pki"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
)

// etcd listens inside the control plane's namespace only.
const etcdURL = "http://127.0.0.1:2379"

// apiAddr is the API server's address, as nodes and people reach it.
func (l *Lab) apiAddr() netip.Addr { return l.Families.Of(plan.ControlPlaneLAN)[0].Addr() }

// commas joins prefixes as command lines have them.
func commas(prefixes []netip.Prefix) string {
	var s []string
	for _, p := range prefixes {
		s = append(s, p.String())
	}
	return strings.Join(s, ",")
}

// controlPlane starts etcd and the three servers as they run in production: TLS,
// RBAC, Node authorization. It returns when the API server is ready.
func (l *Lab) controlPlane(ctx context.Context, ca *pki.Authority) error {
	cp := member.Of(l.Dir, plan.ControlPlane)
	if err := l.controlPlaneKeys(ca); err != nil {
		return err
	}
	etcd, err := l.ensure(process.Spec{
		Member: cp, Name: "etcd",
		Argv: []string{
			"etcd",
			// In memory: what it would survive, the nodes do not.
			"--data-dir=/run/etcd",
			"--listen-client-urls=" + etcdURL, "--advertise-client-urls=" + etcdURL,
			"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster=default=http://127.0.0.1:2380",
			"--log-level=warn", "--logger=zap",
		},
	})
	if err != nil {
		return err
	}
	api, err := l.ensure(process.Spec{
		Member: cp, Name: "kube-apiserver", Inputs: []string{ca.Cert("apiserver")},
		Argv: []string{
			"kube-apiserver",
			"--advertise-address=" + l.apiAddr().String(),
			"--bind-address=::", "--secure-port=6443",
			"--etcd-servers=" + etcdURL,
			"--service-cluster-ip-range=" + commas(l.Families.Of(plan.Services)),
			"--authorization-mode=Node,RBAC",
			"--enable-admission-plugins=NodeRestriction",
			"--client-ca-file=" + ca.CA(),
			"--tls-cert-file=" + ca.Cert("apiserver"), "--tls-private-key-file=" + ca.Key("apiserver"),
			"--kubelet-certificate-authority=" + ca.CA(),
			"--kubelet-client-certificate=" + ca.Cert("apiserver-kubelet-client"),
			"--kubelet-client-key=" + ca.Key("apiserver-kubelet-client"),
			"--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc",
			"--service-account-key-file=" + ca.Key("service-accounts"),
			"--service-account-signing-key-file=" + ca.Key("service-accounts"),
			"--allow-privileged=true",
		},
	})
	if err != nil {
		return err
	}
	err = process.Await(ctx, "the API server to be ready", []*process.Process{etcd, api}, l.apiReady)
	if err != nil {
		return err
	}
	for _, spec := range []process.Spec{
		{
			Name: "kube-controller-manager", Inputs: []string{l.kubeconfig("controller-manager")},
			Argv: []string{
				"kube-controller-manager",
				"--kubeconfig=" + l.kubeconfig("controller-manager"),
				"--bind-address=::1", "--leader-elect=false",
				"--allocate-node-cidrs=false",
				// A node that became Ready is let off its taint at once.
				"--node-monitor-period=1s",
				"--use-service-account-credentials",
				"--service-account-private-key-file=" + ca.Key("service-accounts"),
				"--root-ca-file=" + ca.CA(),
			},
		},
		{
			Name: "kube-scheduler", Inputs: []string{l.kubeconfig("scheduler")},
			Argv: []string{
				"kube-scheduler",
				"--kubeconfig=" + l.kubeconfig("scheduler"),
				"--bind-address=::1", "--leader-elect=false",
			},
		},
	} {
		spec.Member = cp
		if _, err := l.ensure(spec); err != nil {
			return err
		}
	}
	return nil
}

// controlPlaneKeys makes the certificates and the configurations of the API
// server's clients.
func (l *Lab) controlPlaneKeys(ca *pki.Authority) error {
	names := []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", plan.ControlPlane}
	addrs := []netip.Addr{
		netip.IPv6Loopback(), netip.MustParseAddr("127.0.0.1"),
		plan.ControlPlaneLAN.IPv6.Addr(), plan.ControlPlaneLAN.IPv4.Addr(),
		plan.First(plan.Service6), plan.First(plan.Service4),
	}
	if err := ca.Server("apiserver", names, addrs); err != nil {
		return err
	}
	if err := ca.SigningKey("service-accounts"); err != nil {
		return err
	}
	if err := ca.Client("apiserver-kubelet-client", "kube-apiserver-kubelet-client", "system:masters"); err != nil {
		return err
	}
	for _, c := range []struct {
		name, user string
		groups     []string
	}{
		{"admin", "lab-admin", []string{"system:masters"}},
		{"controller-manager", "system:kube-controller-manager", nil},
		{"scheduler", "system:kube-scheduler", nil},
		{"kube-proxy", "system:kube-proxy", nil},
	} {
		if err := ca.Client(c.name, c.user, c.groups...); err != nil {
			return err
		}
		if err := l.writeKubeconfig(ca, c.name); err != nil {
			return err
		}
	}
	return nil
}

// kubeconfig is the file by which the named client reaches the API server.
func (l *Lab) kubeconfig(client string) string {
	return l.Dir.Path("pki", client+".kubeconfig")
}

func (l *Lab) writeKubeconfig(ca *pki.Authority, client string) error {
	content, err := ca.Kubeconfig(client, "https://"+netip.AddrPortFrom(l.apiAddr(), 6443).String())
	if err != nil {
		return err
	}
	_, err = l.Dir.Write(l.kubeconfig(client), content, os.FileMode(0o600))
	return err
}
