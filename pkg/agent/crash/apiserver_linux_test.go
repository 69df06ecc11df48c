//go:build apiserver

package crash

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/kube/kubetest"
)

// realServer is a kube-apiserver.
type realServer struct {
	rest.Interface
	config *rest.Config
}

func (s realServer) put(path, object string) error {
	return s.Patch(types.ApplyPatchType).AbsPath(path).Param("fieldManager", "test").Param("force", "true").Body([]byte(object)).Do(context.Background()).Error()
}

func (s realServer) get(path string) ([]byte, error) {
	return s.Get().AbsPath(path).DoRaw(context.Background())
}

func (s realServer) remove(path string) error {
	return s.Delete().AbsPath(path).Param("gracePeriodSeconds", "0").Do(context.Background()).Error()
}

func (s realServer) url() string { return "https://127.0.0.1:1" }

// serve passes connections on: the server is in a namespace of its own.
func (s realServer) serve(t testing.TB, ns *nettest.NS) {
	var listener net.Listener
	var err error
	ns.Run(func() { listener, err = net.Listen("tcp", "127.0.0.1:1") })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := s.config.Dial(context.Background(), "tcp", "127.0.0.1:6443")
				if err != nil {
					return
				}
				defer out.Close()
				go func() { io.Copy(out, in); out.(*net.TCPConn).CloseWrite() }()
				io.Copy(in, out)
			}()
		}
	}()
}

func realWorld(t *testing.T) *world {
	server := kubetest.Start(t, "../../../deploy")
	admin := server.Admin()
	return newWorld(t, realServer{server.Core(admin), admin})
}

// TestAPIServer kills the agent before each of its effects in what changes at the API server and
// in kube-proxy, and fails each of its calls. Then the change stays, or is taken back before the
// agent is there again. Without -full it does so at one point of each.
func TestAPIServer(t *testing.T) {
	r := random(t)
	w := realWorld(t)
	s := bystand(w.node)
	w.eventually("at the start", w.all)
	w.probe(bystanders(w.node)[0], time.Millisecond)
	settled := func(what string) {
		t.Helper()
		began := time.Now()
		w.eventually(what, w.all)
		if d := time.Since(began); d > 2*time.Second {
			t.Logf("%s: it took %v", what, d.Round(time.Millisecond))
		}
	}
	turn := func(c change, on bool) { w.wanted[c.name] = on; c.to(w, on) }
	for _, c := range changes {
		for _, on := range []bool{true, false} {
			name := fmt.Sprintf("%s %t", c.name, on)
			settled("before " + name)
			w.faults("reset")
			turn(c, on)
			w.eventually(name, func() error { return c.is(w, on) })
			most, calls := effects(w.faults("trace")) // without the reports, which come later
			settled(name)
			if most == 0 {
				t.Fatalf("%s: no effects", name)
			}
			turn(c, !on)
			settled("back from " + name)
			reached := 0
			for _, at := range points(r, most+1, 1) {
				for _, back := range []bool{false, true} {
					if !*full && back != (r.IntN(2) == 0) {
						continue
					}
					what := fmt.Sprintf("%s, killed before effect %d of %d, taken back: %t", name, at, most, back)
					w.faults(fmt.Sprintf("kill %d", at))
					turn(c, on)
					for deadline := time.Now().Add(500 * time.Millisecond); w.alive() && at <= most && time.Now().Before(deadline); {
						time.Sleep(time.Millisecond)
					}
					if !w.alive() {
						reached++
					}
					w.kill()
					if back {
						turn(c, !on)
					}
					w.start()
					settled(what)
					turn(c, !on)
					settled(what + ", and back")
				}
			}
			failed := 0
			for _, at := range points(r, calls, 1) {
				failed++
				errno := errnos[r.IntN(len(errnos))]
				w.faults(fmt.Sprintf("fail %d %s", at, errno))
				turn(c, on)
				settled(fmt.Sprintf("%s, call %d of %d fails with %s", name, at, calls, errno))
				w.faults("reset")
				turn(c, !on)
				settled("back from " + name)
				if !w.alive() {
					t.Fatalf("%s: the agent has ended\n%s", name, w.log())
				}
			}
			t.Logf("%s: %d effects, %d killed at the step itself; %d calls, %d made to fail", name, most, reached, calls, failed)
			turn(c, on) // the next changes are made amid it
		}
	}
	w.prober.holds(t, "all changes")
	s.unbroken(t)
}

// TestSoakAPIServer is TestSoak amid changes of policies, Services, readiness, claims and BIRD's
// configuration.
func TestSoakAPIServer(t *testing.T) {
	if *soak == 0 {
		t.Skip("no -soak")
	}
	w := realWorld(t)
	s := bystand(w.node)
	w.eventually("at the start", w.all)
	w.probe(bystanders(w.node)[0], time.Millisecond)
	made := 0
	soakOn(t, w.node, w.all, func(r *rand.Rand) {
		c := changes[r.IntN(len(changes))]
		made++
		w.wanted[c.name] = !w.wanted[c.name]
		c.to(w, w.wanted[c.name])
	})
	t.Logf("%d changes", made)
	w.prober.holds(t, "all changes")
	s.unbroken(t)
}
