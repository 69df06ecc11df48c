package kubetest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	krt "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/internal/netns"
	"flock.fritzlab.net/flock/internal/nettest"
)

const (
	url        = "https://127.0.0.1:6443"
	adminToken = "admin"
)

// Server is an API server that belongs to one test.
type Server struct {
	t    *testing.T
	ns   *nettest.NS
	dir  string
	stop func()
}

// Start returns when the server is ready and has all of deploy, the directory of
// flock's manifests.
func Start(t *testing.T, deploy string) *Server {
	t.Helper()
	s := &Server{t: t, ns: nettest.New(t), dir: t.TempDir()}
	s.ns.IP("address", "add", "192.0.2.1/32", "dev", "lo") // it will not advertise ::1
	s.write("tokens.csv", adminToken+`,admin,admin,"system:masters"`+"\n")
	s.write("accounts.key", signingKey(t))
	s.start("etcd", "--data-dir="+s.path("etcd"), "--log-level=error", "--logger=zap")
	s.Up()
	s.Kubectl("", "apply", "--server-side", "--kustomize="+deploy)
	s.Kubectl("", "wait", "--for=condition=Established", "customresourcedefinitions", "--all", "--timeout=30s")
	agent := s.Core(s.Agent("node1"))
	s.await("the agents' rights", func(ctx context.Context) error {
		err := agent.Get().Namespace("default").Resource("pods").Name("none").Do(ctx).Error()
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
	s.awaitPolicies(agent)
	return s
}

// awaitPolicies waits until the server enforces the admission policies: it follows them a
// moment behind. The one of Nodes is the last in deploy.
func (s *Server) awaitPolicies(agent rest.Interface) {
	s.t.Helper()
	const name = "policies"
	admin := s.Core(s.Admin())
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := admin.Post().Resource("nodes").Body(node).Do(s.t.Context()).Error(); err != nil {
		s.t.Fatal(err)
	}
	s.await("the policy of Nodes", func(ctx context.Context) error {
		patch := agent.Patch(types.MergePatchType).Resource("nodes").Name(name).SubResource("status").Param("dryRun", "All")
		if err := patch.Body([]byte(`{"status":{"images":[]}}`)).Do(ctx).Error(); !apierrors.IsForbidden(err) {
			return fmt.Errorf("the agent of another node may change Node %s: %v", name, err)
		}
		return nil
	})
	if err := admin.Delete().Resource("nodes").Name(name).Do(s.t.Context()).Error(); err != nil {
		s.t.Fatal(err)
	}
}

// Up starts the server again after Down.
func (s *Server) Up() {
	s.t.Helper()
	args := []string{
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=127.0.0.1", "--secure-port=6443", "--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none",
		"--cert-dir=" + s.path("certificates"),
		"--token-auth-file=" + s.path("tokens.csv"), "--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + s.path("accounts.key"), "--service-account-signing-key-file=" + s.path("accounts.key"),
		"--disable-admission-plugins=ServiceAccount", // which a controller would make
		"--service-cluster-ip-range=2001:db8:0:5::/112,10.96.0.0/16",
	}
	// As before Kubernetes 1.36: what it takes then must not be a way around flock's policies.
	const strict = "StrictIPCIDRValidation"
	help, err := exec.Command("kube-apiserver", "--help").CombinedOutput()
	if err != nil {
		s.t.Fatalf("kube-apiserver --help, which says whether it has the feature gate %s: %v: %s", strict, err, help)
	}
	if strings.Contains(string(help), strict) {
		args = append(args, "--feature-gates="+strict+"=false")
	}
	s.stop = s.start("kube-apiserver", args...)
	client := s.Core(s.Admin())
	s.await("the API server to be ready", func(ctx context.Context) error {
		_, err := client.Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
	s.await("namespace default", func(ctx context.Context) error {
		return client.Get().Resource("namespaces").Name("default").Do(ctx).Error()
	})
}

// Down kills the server: an outage. What it holds is kept.
func (s *Server) Down() { s.stop() }

// Admin may do everything.
func (s *Server) Admin() *rest.Config {
	return &rest.Config{
		Host: url, BearerToken: adminToken, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true}, // its certificate is made at its start
		Dial:            s.dial,
	}
}

// Agent is what flock-agent on a node is to the server, down to what its token says.
func (s *Server) Agent(node string) *rest.Config {
	c := s.Admin()
	c.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:flock-system:flock",
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:flock-system", "system:authenticated"},
		Extra:    map[string][]string{"authentication.kubernetes.io/node-name": {node}},
	}
	return c
}

// Controller is what flock-controller is to the server.
func (s *Server) Controller() *rest.Config {
	c := s.Admin()
	c.Impersonate = rest.ImpersonationConfig{
		UserName: controllerAccount,
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:flock-system", "system:authenticated"},
	}
	return c
}

const controllerAccount = "system:serviceaccount:flock-system:flock-controller"

// ControllerKubeconfig is the path of a file with which a process of Process is Controller.
func (s *Server) ControllerKubeconfig() string {
	return s.kubeconfig("controller", `,"as":"`+controllerAccount+`","as-groups":["system:serviceaccounts","system:authenticated"]`)
}

// AdminKubeconfig is the path of a file with which a process of Process may do everything.
func (s *Server) AdminKubeconfig() string { return s.kubeconfig("admin", "") }

func (s *Server) kubeconfig(name, as string) string {
	s.write(name+".kubeconfig", `{"apiVersion":"v1","kind":"Config","current-context":"c",
"contexts":[{"name":"c","context":{"cluster":"c","user":"c"}}],
"clusters":[{"name":"c","cluster":{"server":"`+url+`","insecure-skip-tls-verify":true}}],
"users":[{"name":"c","user":{"token":"`+adminToken+`"`+as+`}}]}`)
	return s.path(name + ".kubeconfig")
}

// NS is the server's network namespace, in which Process runs programs. A test may make a node of it.
func (s *Server) NS() *nettest.NS { return s.ns }

// Process runs a program in the server's network namespace until it ends or the test does.
// Its output goes to log.
func (s *Server) Process(log *os.File, program string, args ...string) (process *os.Process, ended <-chan struct{}) {
	s.t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	var err error
	s.ns.Run(func() { err = cmd.Start() })
	if err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = cmd.Wait() }()
	s.t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGKILL); <-done })
	return cmd.Process, done
}

// Core is a client of API group core.
func (s *Server) Core(c *rest.Config) rest.Interface {
	s.t.Helper()
	scheme := krt.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		s.t.Fatal(err)
	}
	c = rest.CopyConfig(c)
	c.APIPath, c.GroupVersion = "/api", &corev1.SchemeGroupVersion
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(c)
	if err != nil {
		s.t.Fatal(err)
	}
	return client
}

// TryKubectl runs kubectl as administrator and returns all that it printed.
func (s *Server) TryKubectl(stdin string, args ...string) (string, error) {
	s.t.Helper()
	cmd := exec.Command("kubectl", append([]string{"--server=" + url, "--token=" + adminToken, "--insecure-skip-tls-verify"}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG=/dev/null", "KUBECACHEDIR="+s.path("kubectl"))
	cmd.Stdin = strings.NewReader(stdin)
	var out []byte
	var err error
	s.ns.Run(func() { out, err = cmd.CombinedOutput() })
	return string(out), err
}

// Kubectl is TryKubectl for what must succeed.
func (s *Server) Kubectl(stdin string, args ...string) string {
	s.t.Helper()
	out, err := s.TryKubectl(stdin, args...)
	if err != nil {
		s.t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// start runs a program until stop is called or the test ends.
func (s *Server) start(name string, args ...string) (stop func()) {
	s.t.Helper()
	log, err := os.OpenFile(s.path(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	s.ns.Run(func() { err = cmd.Start() })
	if err != nil {
		s.t.Fatalf("%v: put etcd, kube-apiserver and kubectl into PATH: make test-cluster does", err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	stop = func() { _ = cmd.Process.Signal(syscall.SIGKILL); <-ended }
	s.t.Cleanup(stop)
	return stop
}

// dial connects from the server's namespace: the machine has no way there.
func (s *Server) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = netns.Do(s.ns.File(), func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

func (s *Server) await(what string, ready func(context.Context) error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(s.path("kube-apiserver.log"))
			s.t.Fatalf("waited in vain for %s: %v\n%s", what, err, log[max(0, len(log)-4000):])
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Server) write(name, content string) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func signingKey(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}
