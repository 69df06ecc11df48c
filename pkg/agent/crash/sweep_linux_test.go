package crash

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Without -full the sweep takes a few points of each operation, and one outcome or fault of each:
// the seed says which.
var (
	full     = flag.Bool("full", false, "sweep all outcomes of all points")
	seed     = flag.Uint64("seed", 1, "of what is left to chance; 0: another one each time")
	patience = flag.Duration("patience", 45*time.Second, "how long the node may take to be what it must be")
)

func random(t testing.TB) *rand.Rand {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", s)
	return rand.New(rand.NewPCG(s, 0))
}

// operations are what the agent is at when it is killed. Each begins where prepare ends.
var operations = []struct {
	name    string
	prepare func(n *node, p *pod)
	do      func(n *node, p *pod) error
}{
	{"ADD", func(*node, *pod) {}, func(n *node, p *pod) error { return n.add(p) }},
	{"DEL", func(n *node, p *pod) { n.must("ADD", func() error { return n.add(p) }) }, func(n *node, p *pod) error {
		err := n.del(p)
		n.forget(p) // whatever the answer: it is on its way out
		return err
	}},
	{"GC", func(n *node, p *pod) { n.must("ADD", func() error { return n.add(p) }) }, func(n *node, p *pod) error {
		err := n.gc(bystanders(n)...)
		n.forget(p)
		return err
	}},
	{"repair", func(n *node, p *pod) { n.must("ADD", func() error { return n.add(p) }) }, func(n *node, p *pod) error {
		// Only of this pod, so that the others' packets are unbroken.
		link := linkOf(p)
		n.host.Exec("sh", "-c", fmt.Sprintf(`ip address flush dev %[1]s; ip neighbor flush dev %[1]s nud permanent; ip route flush dev %[1]s proto 85
			ip -6 route flush dev %[1]s proto 85; nft flush table inet flock-hostport; ip link set %[1]s mtu 1400`, link))
		deadline := time.Now().Add(5 * time.Second)
		for n.alive() && n.settled() != nil && time.Now().Before(deadline) {
			time.Sleep(5 * time.Millisecond)
		}
		return nil
	}},
	// Without DEL: the link goes with the pod's namespace.
	{"end", func(n *node, p *pod) { n.must("ADD", func() error { return n.add(p) }) }, func(n *node, p *pod) error {
		end(n, p)
		deadline := time.Now().Add(5 * time.Second)
		for n.alive() && n.settled() != nil && time.Now().Before(deadline) {
			time.Sleep(5 * time.Millisecond)
		}
		return nil
	}},
}

// outcome is what the runtime does once the agent is there again. p's ADD or DEL was answered, or
// not.
type outcome struct {
	name     string
	before   bool // it does so before the agent is there again
	sandbox  bool // it needs the pod's sandbox
	restarts bool // it starts the agent itself, and the bystanders end
	do       func(n *node, p *pod, answered bool)
}

var outcomes = []outcome{
	{name: "ADD again", sandbox: true, do: func(n *node, p *pod, _ bool) { n.must("ADD", func() error { return n.add(p) }) }},
	{name: "DEL", do: func(n *node, p *pod, _ bool) { n.must("DEL", func() error { return n.del(p) }) }},
	{name: "nothing, if it was answered", do: func(n *node, p *pod, answered bool) {
		if !answered {
			n.must("DEL", func() error { return n.del(p) })
		}
	}},
	{name: "GC", do: func(n *node, p *pod, _ bool) { n.must("GC", func() error { return n.gc(bystanders(n)...) }) }},
	{name: "the sandbox ends", sandbox: true, do: func(n *node, p *pod, _ bool) { end(n, p) }},
	{name: "the sandbox has ended", before: true, sandbox: true, do: func(n *node, p *pod, _ bool) { end(n, p) }},
	{name: "another pod's ADD", do: func(n *node, p *pod, _ bool) {
		q := n.sandbox(p.id+"-next", 0)
		n.must("ADD", func() error { return n.add(q) })
		n.must("DEL", func() error { return n.del(p) })
		n.must("DEL", func() error { return n.del(q) })
	}},
	{name: "reboot", restarts: true, do: func(n *node, p *pod, _ bool) { rebooted(n, p, false) }},
	{name: "reboot that keeps /run", restarts: true, do: func(n *node, p *pod, _ bool) { rebooted(n, p, true) }},
}

// rebooted reboots the node. The runtime deletes what it knows of from before.
func rebooted(n *node, p *pod, keepsRun bool) {
	before := append(bystanders(n), p)
	n.reboot(keepsRun)
	for _, p := range before {
		p.ns.Delete()
		n.must("DEL after a reboot", func() error { return n.del(p) })
	}
}

func end(n *node, p *pod) {
	p.ns.Delete()
	n.forget(p)
}

// bystanders are pods that run all the time.
func bystanders(n *node) (all []*pod) {
	for id, p := range n.pods {
		if strings.HasPrefix(id, "bystander") {
			all = append(all, p)
		}
	}
	return all
}

// quiet waits until the agent has come to the end of what it does, and returns its trace.
func (n *node) quiet() (trace []string) {
	n.t.Helper()
	since := time.Now()
	n.eventually("the agent is at rest", func() error {
		if now := n.faults("trace"); len(now) != len(trace) {
			trace, since = now, time.Now()
		}
		if time.Since(since) < 200*time.Millisecond {
			return fmt.Errorf("the last call was just made")
		}
		return nil
	})
	return trace
}

// nothingHeld fails the test unless all addresses of the node but those of pods can be assigned.
func (n *node) nothingHeld() {
	n.t.Helper()
	const size = 16 // of the IPv4 CIDR, of which network and broadcast address are not assigned
	var all []*pod
	for len(n.pods) < size-2 {
		p := n.sandbox(fmt.Sprint("last-", len(n.pods)), 0)
		n.must("ADD of each address", func() error { return n.add(p) })
		all = append(all, p)
	}
	n.eventually("with all addresses", n.settled)
	for _, p := range all {
		n.must("DEL", func() error { return n.del(p) })
	}
	n.eventually("at the end", n.settled)
}

func withBystanders(t *testing.T) (*node, *stream) {
	n := newNode(t)
	n.start()
	return n, bystand(n)
}

// bystand attaches two pods, of which one sends to the other from now on.
func bystand(n *node) *stream {
	a, b := attachBystanders(n)
	return n.stream(a, b)
}

func attachBystanders(n *node) (a, b *pod) {
	a, b = n.sandbox(fmt.Sprint("bystander-a", n.boots), 8001), n.sandbox(fmt.Sprint("bystander-b", n.boots), 0)
	for _, p := range []*pod{a, b} {
		n.must("ADD", func() error { return n.add(p) })
	}
	n.eventually("at the start", n.settled)
	return a, b
}

// effects is how many effects an operation has, as its trace says.
func effects(trace []string) (effects, calls int) {
	for _, line := range trace {
		var kind string
		fmt.Sscanf(line, "%s %d/%d", &kind, &effects, &calls)
	}
	return effects, calls
}

// TestKillAtEveryStep kills the agent before each of its effects in each operation, and after
// the last. Then the runtime does something, and the node is what the runtime was told.
func TestKillAtEveryStep(t *testing.T) {
	r := random(t)
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			n, s := withBystanders(t)
			made, done, reached := 0, 0, 0
			next := func() *pod { made++; return n.sandbox(fmt.Sprintf("pod-%d", made), 9000) }
			// How many there are.
			p := next()
			op.prepare(n, p)
			n.eventually("prepared", n.settled)
			n.faults("reset")
			if err := op.do(n, p); err != nil {
				t.Fatalf("%s: %v\n%s", op.name, err, n.log())
			}
			count, _ := effects(n.quiet())
			n.eventually("after "+op.name, n.settled)
			if n.pods[p.id] != nil {
				n.must("DEL", func() error { return n.del(p) })
			}
			if count < 3 {
				t.Fatalf("%d effects", count)
			}
			for _, at := range points(r, count+1, 6) {
				for _, o := range choose(r, op.name) {
					done++
					p := next()
					op.prepare(n, p)
					n.eventually("prepared", n.settled)
					n.faults(fmt.Sprintf("kill %d", at))
					answered := op.do(n, p) == nil
					// What comes after the answer is in it too.
					for deadline := time.Now().Add(150 * time.Millisecond); n.alive() && at <= count && time.Now().Before(deadline); {
						time.Sleep(time.Millisecond)
					}
					if !n.alive() {
						reached++
					}
					n.kill()
					if o.restarts {
						s.unbroken(t)
					}
					if o.before || o.restarts {
						o.do(n, p, answered)
					}
					if !o.restarts {
						n.start()
					}
					if !o.before && !o.restarts {
						o.do(n, p, answered)
					}
					n.eventually(fmt.Sprintf("%s, killed before effect %d of %d, then %s", op.name, at, count, o.name), n.settled)
					if n.pods[p.id] != nil {
						n.must("DEL", func() error { return n.del(p) })
						n.eventually("after DEL", n.settled)
					}
					if o.restarts {
						s = bystand(n)
					}
				}
			}
			t.Logf("%s: %d effects, %d points × outcomes, %d killed at the step itself", op.name, count, done, reached)
			s.unbroken(t)
			n.nothingHeld()
		})
	}
}

// points are the numbers from 1 to all, or a few of them without -full.
func points(r *rand.Rand, all, few int) (chosen []int) {
	for i := range all {
		chosen = append(chosen, i+1)
	}
	if *full || all <= few {
		return chosen
	}
	r.Shuffle(all, func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
	chosen = chosen[:few]
	slices.Sort(chosen)
	return chosen
}

// choose returns all outcomes of an operation, or one of them.
func choose(r *rand.Rand, op string) []outcome {
	var fit []outcome
	for _, o := range outcomes {
		if op != "end" || !o.sandbox {
			fit = append(fit, o)
		}
	}
	if !*full {
		return []outcome{fit[r.IntN(len(fit))]}
	}
	return fit
}

// TestKillPluginAtEveryStep kills the plugin while the agent is at each effect of its call. The
// agent lives on, and the runtime does what it would do after a call without an answer.
func TestKillPluginAtEveryStep(t *testing.T) {
	r := random(t)
	for i, command := range []string{"ADD", "DEL", "GC"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			n, s := withBystanders(t)
			op := operations[i]
			done, reached := 0, 0
			for _, at := range points(r, 12, 4) {
				for _, o := range choose(r, op.name) {
					if o.before || o.restarts {
						continue // of the agent's end
					}
					done++
					p := n.sandbox(fmt.Sprint("pod-", done), 9000)
					op.prepare(n, p)
					n.eventually("prepared", n.settled)
					n.faults(fmt.Sprintf("hold %d", at))
					var cmd *exec.Cmd
					if command == "GC" {
						cmd = n.plugin(command, nil, valid(bystanders(n)))
					} else {
						cmd = n.plugin(command, p, nil)
					}
					if err := cmd.Start(); err != nil {
						t.Fatal(err)
					}
					ended := make(chan struct{})
					go func() { cmd.Wait(); close(ended) }()
					n.eventually(command+" is held or answered", func() error {
						select {
						case <-ended:
							return nil
						default:
						}
						if n.faults("held")[0] == "no" {
							return fmt.Errorf("neither")
						}
						return nil
					})
					if n.faults("held")[0] == "yes" {
						reached++
					}
					cmd.Process.Kill()
					<-ended
					n.faults("go")
					n.forget(p) // it was not answered, or is deleted
					o.do(n, p, false)
					n.eventually(fmt.Sprintf("%s, the plugin killed at effect %d, then %s", command, at, o.name), n.settled)
					if n.pods[p.id] != nil {
						n.must("DEL", func() error { return n.del(p) })
						n.eventually("after DEL", n.settled)
					}
				}
			}
			t.Logf("%s: %d points × outcomes, %d with the plugin killed amid the call", command, done, reached)
			if reached == 0 {
				t.Error("the plugin was killed at no effect")
			}
			s.unbroken(t)
			n.nothingHeld()
		})
	}
}

// TestFullDisk fills the file system of the agent's state. What cannot be done is refused, and is
// done once there is room; the agent starts where there is none.
func TestFullDisk(t *testing.T) {
	n := newNode(t)
	n.host.Exec("mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", n.state)
	t.Cleanup(func() {
		n.kill()
		exec.Command("umount", "--lazy", n.state).Run()
	})
	n.write(filepath.Join(n.state, "nodeconfig.json"), nodeConfig)
	n.start()
	s := bystand(n)
	old, fresh := n.sandbox("old", 9000), n.sandbox("fresh", 9001)
	n.must("ADD", func() error { return n.add(old) })
	n.eventually("before", n.settled)
	fill := filepath.Join(n.state, "fill")
	for _, restart := range []bool{false, true} {
		f, err := os.Create(fill)
		for block := make([]byte, 4096); err == nil; {
			_, err = f.Write(block)
		}
		f.Close()
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		if restart {
			n.kill()
			n.start()
		}
		if err := n.add(fresh); err == nil || !strings.Contains(err.Error(), "no space left") {
			t.Errorf("ADD on a full disk: %v", err)
		}
		n.eventually("a refused ADD", n.settled)
		// A pod's end must not wait for room: removing its record takes none.
		n.must("DEL on a full disk", func() error { return n.del(old) })
		n.eventually("DEL on a full disk", n.settled)
		if err := os.Remove(fill); err != nil {
			t.Fatal(err)
		}
		n.must("ADD", func() error { return n.add(old) })
		n.must("ADD", func() error { return n.add(fresh) })
		n.eventually("with room", n.settled)
		n.must("DEL", func() error { return n.del(fresh) })
	}
	n.must("DEL", func() error { return n.del(old) })
	s.unbroken(t)
	n.nothingHeld()
}

// TestKillAtEveryStepOfStart does so while the agent starts, with a pod of each state of a record.
func TestKillAtEveryStepOfStart(t *testing.T) {
	r := random(t)
	sweepStart(t, r, func(effects, _ int) []int { return points(r, effects+1, 4) }, func(at int) string { return fmt.Sprintf("kill %d", at) }, true)
}

// TestFailEveryCallOfStart fails each system call of a start. Where the agent ends, it is started
// again, as by the kubelet; where it lives, it comes to the same end.
func TestFailEveryCallOfStart(t *testing.T) {
	r := random(t)
	sweepStart(t, r, func(_, calls int) []int { return points(r, calls, 8) }, func(at int) string {
		return fmt.Sprintf("fail %d %s", at, errnos[r.IntN(len(errnos))])
	}, false)
}

// sweepStart arms each of the starts that choose names, and has it followed by one more if kills
// are armed.
func sweepStart(t *testing.T, r *rand.Rand, choose func(effects, calls int) []int, arm func(at int) string, kills bool) {
	n, s := withBystanders(t)
	count, calls, made, ended, all := 0, 0, 0, 0, []int{0}
	armed := false // and the agent has not been started again since
	// supervised starts the agent again if an armed start has ended after it had begun to serve.
	supervised := func(f func() error) func() error {
		return func() error {
			if armed && !n.alive() {
				ended++
				armed = false
				n.start()
			}
			return f()
		}
	}
	for i := 0; i < len(all); i++ {
		at, what := all[i], "nothing"
		// A pod that is half attached, one that is half detached, one that has lost its sandbox.
		made++
		half, going, lost := n.sandbox(fmt.Sprint("half-", made), 9000), n.sandbox(fmt.Sprint("going-", made), 9001), n.sandbox(fmt.Sprint("lost-", made), 0)
		for _, p := range []*pod{going, lost} {
			n.must("ADD", supervised(func() error { return n.add(p) }))
		}
		kill := fmt.Sprintf("kill %d", 2+r.IntN(6))
		n.must(kill, supervised(func() error { _, err := n.tryFaults(kill); return err }))
		armed = false
		n.add(half)
		n.kill()
		n.start()
		n.faults(fmt.Sprintf("kill %d", 1+r.IntN(3)))
		n.del(going)
		n.forget(going)
		n.kill()
		end(n, lost)
		n.host.Try("nft", "flush", "table", "inet", "flock-hostport")

		if at == 0 { // how many there are
			n.start()
			count, calls = effects(n.faults("trace"))
			if count == 0 {
				t.Fatal("a start without effects")
			}
			all = append(all, choose(count, calls)...)
		} else {
			what = arm(at)
			n.launch(what)
			n.eventually("the agent ends or serves", func() error {
				if _, err := n.call("STATUS", nil, nil); err != nil && n.alive() {
					return err
				}
				return nil
			})
			if kills {
				n.kill()
			}
			armed = true
			n.must("reset", supervised(func() error { _, err := n.tryFaults("reset"); return err }))
		}
		// An ADD that was answered stands; one that was not is undone, or is there for the asking.
		if r.IntN(2) == 0 {
			n.must("ADD", supervised(func() error { return n.add(half) }))
		} else {
			n.must("DEL", supervised(func() error { return n.del(half) }))
		}
		n.must("DEL", supervised(func() error { return n.del(going) }))
		n.eventually(fmt.Sprintf("a start with %q, of %d effects and %d calls", what, count, calls), supervised(n.settled))
		if n.pods[half.id] != nil {
			n.must("DEL", supervised(func() error { return n.del(half) }))
		}
	}
	t.Logf("start: %d effects, %d calls; %d starts, after %d of which the agent was started again", count, calls, len(all), ended)
	s.unbroken(t)
	n.nothingHeld()
}

var errnos = []string{"ENOSPC", "EIO", "EMFILE", "ENOBUFS", "EINTR", "EBUSY", "short"}

// TestFailEveryCall fails each system call of an operation once. What the operation answers is
// true all the same, and the runtime's next try succeeds.
func TestFailEveryCall(t *testing.T) {
	r := random(t)
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			n, s := withBystanders(t)
			made, done, failed := 0, 0, 0
			calls := 1
			for i, all := 0, []int{0}; i < len(all); i++ {
				at := all[i]
				chosen := errnos
				if at == 0 {
					chosen = chosen[:1]
				} else if !*full {
					i := r.IntN(len(errnos))
					chosen = errnos[i : i+1]
				}
				for _, errno := range chosen {
					made++
					done++
					p := n.sandbox(fmt.Sprintf("pod-%d", made), 9000)
					op.prepare(n, p)
					n.eventually("prepared", n.settled)
					arm := fmt.Sprintf("fail %d %s", at, errno)
					if at == 0 {
						arm = "reset"
					}
					n.faults(arm)
					err := op.do(n, p)
					if err != nil {
						failed++
					}
					trace := n.faults("trace")
					if at == 0 {
						_, calls = effects(n.quiet())
						all = append(all, points(r, calls, 12)...)
					}
					n.faults("reset")
					what := fmt.Sprintf("%s, call %d of %d fails with %s (answer: %v): %s", op.name, at, calls, errno, err, at0(trace, at))
					switch next := r.IntN(3); {
					case op.name == "ADD" && next == 0:
						n.must(what+", ADD again", func() error { return n.add(p) })
					case op.name == "ADD" && next == 1, op.name != "ADD" && err != nil:
						n.must(what+", then DEL", func() error { return n.del(p) })
					} // else an ADD that failed has undone what it did
					n.eventually(what, n.settled)
					if !n.alive() {
						t.Fatalf("%s: the agent has ended\n%s", what, n.log())
					}
					if n.pods[p.id] != nil {
						n.must("DEL", func() error { return n.del(p) })
						n.eventually("after DEL", n.settled)
					}
				}
			}
			t.Logf("%s: %d calls, %d points, %d answered with an error", op.name, calls, done, failed)
			s.unbroken(t)
			n.nothingHeld()
		})
	}
}

func at0(trace []string, at int) string {
	if at < 1 || at > len(trace) {
		return ""
	}
	return trace[at-1]
}
