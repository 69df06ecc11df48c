package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/lab/process"
)

const (
	fleetURL   = "https://127.0.0.1:6443"
	fleetToken = "admin"
	// fleetPatience is for the server to be ready, and for the deployment to be in force.
	fleetPatience = 2 * time.Minute
)

// apiServer is etcd and a real API server in a network namespace of their own, with flock's
// manifests. There are no controllers, no scheduler and no kubelets: nothing but the
// benchmark's clients asks it for anything, and nothing takes its Nodes for machines.
type apiServer struct {
	ns       *netNS
	router   *netNS // at the other end of the namespace's uplink
	dir      string
	programs string // directory of kube-apiserver and kubectl
	process  *os.Process
	stops    []func()
	failed   context.CancelCauseFunc // called when a program ends by itself
}

// startAPIServer returns when the server has all that deploy, a directory, says. failed is to
// end ctx: it is called when a program ends by itself, then or later.
func startAPIServer(ctx context.Context, failed context.CancelCauseFunc, programs, deploy string) (s *apiServer, err error) {
	dir, err := os.MkdirTemp("", "flock-bench-")
	if err != nil {
		return nil, err
	}
	s = &apiServer{dir: dir, programs: programs, failed: failed}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.ns, err = newNetNS(); err != nil {
		return s, err
	}
	if s.router, err = uplink(s.ns); err != nil {
		return s, err
	}
	key, err := accountsKey()
	if err != nil {
		return s, err
	}
	for name, content := range map[string]string{"tokens.csv": fleetToken + `,admin,admin,"system:masters"` + "\n", "accounts.key": key} {
		if err := os.WriteFile(s.path(name), []byte(content), 0o600); err != nil {
			return s, err
		}
	}
	if _, err := s.start("etcd", "--data-dir="+s.path("etcd"), "--log-level=error", "--logger=zap"); err != nil {
		return s, err
	}
	if s.process, err = s.start(filepath.Join(programs, "kube-apiserver"),
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=127.0.0.1", "--secure-port=6443", "--advertise-address=192.0.2.2", "--endpoint-reconciler-type=none",
		"--cert-dir="+s.path("certificates"),
		"--token-auth-file="+s.path("tokens.csv"), "--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+s.path("accounts.key"), "--service-account-signing-key-file="+s.path("accounts.key"),
		"--disable-admission-plugins=ServiceAccount", // which a controller would make
		"--service-cluster-ip-range=10.96.0.0/16",
	); err != nil {
		return s, err
	}
	return s, s.deploy(ctx, deploy)
}

// deploy applies the manifests, and waits until the server acts on them.
func (s *apiServer) deploy(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, fleetPatience)
	defer cancel()
	admin, err := kubernetes.NewForConfig(s.admin(nil))
	if err != nil {
		return err
	}
	if err := process.Await(ctx, "the API server to be ready", nil, func(ctx context.Context) error {
		_, err := admin.CoreV1().Namespaces().Get(ctx, metav1.NamespaceDefault, metav1.GetOptions{})
		return err
	}); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"apply", "--server-side", "--kustomize=" + dir},
		{"wait", "--for=condition=Established", "customresourcedefinitions", "--all", "--timeout=60s"},
	} {
		if err := s.kubectl(ctx, args...); err != nil {
			return err
		}
	}
	agent, err := kubernetes.NewForConfig(s.agent("none", nil))
	if err != nil {
		return err
	}
	return process.Await(ctx, "the agents' rights", nil, func(ctx context.Context) error {
		_, err := agent.CoreV1().Pods(metav1.NamespaceDefault).Get(ctx, "none", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("an agent asks for a pod that is not there: %w", err)
	})
}

func (s *apiServer) kubectl(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(s.programs, "kubectl"), append([]string{"--server=" + fleetURL, "--token=" + fleetToken, "--insecure-skip-tls-verify"}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG=/dev/null", "KUBECACHEDIR="+s.path("kubectl"))
	var out []byte
	err := s.ns.Do(func() (err error) { out, err = cmd.CombinedOutput(); return err })
	if err != nil {
		return fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// start starts a program in the namespace, which runs until close.
func (s *apiServer) start(program string, args ...string) (*os.Process, error) {
	log, err := os.Create(s.path(filepath.Base(program) + ".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	ended, err := s.ns.start(cmd)
	if err != nil {
		return nil, err
	}
	var stopped atomic.Bool
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if err := <-ended; !stopped.Load() {
			s.failed(errors.Join(fmt.Errorf("%s has ended: %w", filepath.Base(program), err), s.said(filepath.Base(program))))
		}
	}()
	s.stops = append(s.stops, func() { stopped.Store(true); _ = cmd.Process.Kill(); <-gone })
	return cmd.Process, nil
}

// said is the end of what a program has logged.
func (s *apiServer) said(program string) error {
	log, err := os.ReadFile(s.path(program + ".log"))
	if err != nil {
		return err
	}
	return fmt.Errorf("%s: %s", program, log[max(0, len(log)-2000):])
}

func (s *apiServer) path(name string) string { return filepath.Join(s.dir, name) }

// close ends all that was started, the last first, and removes what is left.
func (s *apiServer) close() error {
	for len(s.stops) > 0 {
		last := len(s.stops) - 1
		s.stops[last]()
		s.stops = s.stops[:last]
	}
	var errs []error
	for _, ns := range []*netNS{s.ns, s.router} {
		if ns != nil {
			errs = append(errs, ns.Close())
		}
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// cpu is the processor time of the API server so far.
func (s *apiServer) cpu() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.process.Pid))
	if err != nil {
		return 0, err
	}
	return cpuOf(string(stat))
}

// cpuOf reads a process's stat: user and system time are the 14th and the 15th field (proc(5)).
func cpuOf(stat string) (time.Duration, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]) // the name may have spaces
	if len(fields) < 13 {
		return 0, fmt.Errorf("stat of a process: %q has too few fields", stat)
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	const tick = 10 * time.Millisecond // USER_HZ is 100 everywhere
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}

// admin may do everything. Its connection is one of its own, and t counts what goes over it.
func (s *apiServer) admin(t *traffic) *rest.Config {
	return &rest.Config{Host: fleetURL, BearerToken: fleetToken, QPS: -1, Transport: s.transport(t)}
}

// agent is what flock-agent on a node is to the server, down to what its token says.
func (s *apiServer) agent(node string, t *traffic) *rest.Config {
	c := s.admin(t)
	c.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:flock-system:flock",
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:flock-system", "system:authenticated"},
		Extra:    map[string][]string{"authentication.kubernetes.io/node-name": {node}},
	}
	return c
}

// controller is what flock-controller is to the server.
func (s *apiServer) controller(t *traffic) *rest.Config {
	c := s.admin(t)
	c.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:flock-system:flock-controller",
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:flock-system", "system:authenticated"},
	}
	return c
}

// traffic is what a group of clients has asked for and received. A nil one counts nothing.
type traffic struct{ reads, writes, bytes atomic.Int64 }

// usage is traffic at one moment.
type usage struct{ reads, writes, bytes int64 }

func (t *traffic) now() usage { return usage{t.reads.Load(), t.writes.Load(), t.bytes.Load()} }

func (u usage) since(before usage) usage {
	return usage{u.reads - before.reads, u.writes - before.writes, u.bytes - before.bytes}
}

// less takes away a part of other.
func (u usage) less(other usage, part float64) usage {
	of := func(n int64) int64 { return int64(part * float64(n)) }
	return usage{u.reads - of(other.reads), u.writes - of(other.writes), u.bytes - of(other.bytes)}
}

// transport has a connection of its own, as a process of its own would have, with HTTP/2 as
// client-go sets it up.
func (s *apiServer) transport(t *traffic) http.RoundTripper {
	transport := utilnet.SetTransportDefaults(&http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the server makes its certificate at its start
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := s.ns.dial(ctx, network, address)
			if err != nil || t == nil {
				return conn, err
			}
			return countedConn{conn, &t.bytes}, nil
		},
	})
	if t == nil {
		return transport
	}
	return countedRequests{transport, t}
}

type countedConn struct {
	net.Conn
	received *atomic.Int64
}

func (c countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.received.Add(int64(n))
	return n, err
}

type countedRequests struct {
	http.RoundTripper
	t *traffic
}

func (c countedRequests) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet {
		c.t.reads.Add(1)
	} else {
		c.t.writes.Add(1)
	}
	return c.RoundTripper.RoundTrip(r)
}

func accountsKey() (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	der, err := x509.MarshalECPrivateKey(key)
	return string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})), err
}

// dial connects from the namespace.
func (n *netNS) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.Do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// start starts a program in the namespace, and has the kernel kill it when this process ends.
// How it ends comes out of ended.
func (n *netNS) start(cmd *exec.Cmd) (ended <-chan error, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, done := make(chan error), make(chan error, 1)
	go func() {
		// The thread that starts it lives as long: its end would be that of the program.
		done <- n.Do(func() error {
			err := cmd.Start()
			started <- err
			if err == nil {
				err = cmd.Wait()
			}
			return err
		})
	}()
	select {
	case err = <-started:
	case err = <-done: // it cannot enter the namespace
	}
	return done, err
}
