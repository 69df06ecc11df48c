package crash

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var (
	steps    = flag.Int("steps", 30, "of the random scripts of TestRandomScripts, in all")
	stepsFor = flag.Duration("for", 0, "how long TestRandomScripts goes on, in place of -steps")
	script   = flag.String("script", "", "file with the script that TestRandomScripts carries out, in place of random ones")
)

// A script is what runtime, operator and others do to a node, one step a line. A step that makes
// no sense when its turn comes, such as DEL of a pod that was never attached, is one that a
// runtime makes too.
//
//	add POD           ADD; the runtime takes the pod for attached if it is answered
//	del POD           DEL until it succeeds
//	end POD           the sandbox ends without DEL
//	gc                GC, of which all attached pods are valid
//	kill N            the agent is killed before its Nth effect from now on
//	fail N ERRNO      a system call of the agent fails
//	restart           the agent is killed and starts
//	meddle WHAT       another program changes flock's state in the kernel
//	settle            the agent runs, and the node is what the runtime was told
type step = string

var meddling = map[string]string{
	"routes":   "ip route flush proto 85; ip -6 route flush proto 85",
	"tables":   "nft flush ruleset",
	"links":    "for l in $(ip -o link | grep -o 'flock[0-9a-f]*'); do ip link set $l mtu 1400 alias taken; done",
	"neighbor": "ip neighbor flush nud permanent; ip -6 neighbor flush nud permanent",
	"sysctls":  "sysctl -q -w net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
}

// randomScript makes a script that ends settled. In one of four the agent is killed all the time;
// in the others it lives for longer, and comes to do more.
func randomScript(r *rand.Rand, n int) (script []step) {
	kills := 3
	if r.IntN(4) == 0 {
		kills = 15
	}
	pod := func() string { return fmt.Sprint("pod-", r.IntN(5)) }
	for range n {
		var s step
		switch k := r.IntN(100); {
		case k < kills-kills/5:
			s = fmt.Sprint("kill ", 1+r.IntN(16))
		case k < kills:
			s = "restart"
		case k < 45:
			s = "add " + pod()
		case k < 72:
			s = "del " + pod()
		case k < 77:
			s = "end " + pod()
		case k < 82:
			s = "gc"
		case k < 90:
			s = fmt.Sprintf("fail %d %s", 1+r.IntN(40), errnos[r.IntN(len(errnos))])
		case k < 94:
			names := []string{"routes", "tables", "links", "neighbor", "sysctls"}
			s = "meddle " + names[r.IntN(len(names))]
		default:
			s = "settle"
		}
		script = append(script, s)
	}
	return append(script, "settle")
}

// carryOut does the steps of a script, and fails the test where the node is not what it must be.
func carryOut(n *node, sandboxes map[string]*pod, script []step) {
	running := func() {
		if !n.alive() {
			n.start()
		}
	}
	// A kill that was ordered before may come at any time.
	command := func(s string) {
		n.eventually(s, func() error {
			running()
			_, err := n.tryFaults(s)
			return err
		})
	}
	for i, s := range script {
		words := append(strings.Fields(s), "", "")
		p := sandboxes[words[1]]
		if p == nil && slices.Contains([]string{"add", "del", "end"}, words[0]) {
			k, _ := strconv.Atoi(strings.TrimPrefix(words[1], "pod-"))
			p = n.sandbox(words[1], 9000+k)
			sandboxes[words[1]] = p
		}
		switch words[0] {
		case "add":
			running()
			n.add(p)
		case "del":
			if n.alive() {
				n.del(p)
			}
			running()
			n.must("DEL", func() error {
				running()
				return n.del(p)
			})
		case "end":
			end(n, p)
			// A runtime deletes what it knows to have been there, sooner or later.
			delete(sandboxes, words[1])
		case "gc":
			running()
			var all []*pod
			for _, p := range n.pods {
				all = append(all, p)
			}
			n.gc(all...)
		case "kill", "fail":
			command(s)
		case "restart":
			n.kill()
			n.start()
		case "meddle":
			n.host.Exec("sh", "-c", meddling[words[1]]+" || true")
		case "settle":
			command("reset")
			// What an ADD without an answer left is the runtime's to delete.
			for _, p := range sandboxes {
				if n.pods[p.id] == nil {
					n.must("DEL", func() error { return n.del(p) })
				}
			}
			n.eventually(fmt.Sprintf("step %d", i+1), n.settled)
		default:
			n.t.Fatalf("unknown step %q", s)
		}
	}
}

// A life is a node on which script follows script, as long as each leaves it what it must be. The
// processors and the heap of its agents are drawn too: they order its goroutines another way.
type life struct {
	*node
	t         *recorder
	sandboxes map[string]*pod // those that the runtime has not deleted, by name
	done      []step          // all of its scripts
}

func newLife(t testing.TB, r *rand.Rand) *life {
	l := &life{t: &recorder{TB: t}, sandboxes: map[string]*pod{}}
	l.t.try(func() {
		l.node = newNode(l.t)
		l.env = []string{fmt.Sprint("GOMAXPROCS=", 1+r.IntN(2)), "GOGC=400"}
		l.start()
	})
	return l
}

// carriesOut does a script, and says whether the node is what it must be.
func (l *life) carriesOut(script []step) bool {
	l.done = append(l.done, script...)
	l.t.try(func() { carryOut(l.node, l.sandboxes, script) })
	return !l.t.failed
}

// ends deletes all pods, and says whether nothing is held then.
func (l *life) ends() bool {
	l.t.try(func() {
		if !l.alive() {
			l.start()
		}
		l.faults("reset")
		for _, p := range l.sandboxes {
			l.must("DEL", func() error { return l.del(p) })
		}
		clear(l.sandboxes)
		l.eventually("at the end", l.settled)
		l.nothingHeld()
	})
	return !l.t.failed
}

// fails carries a script out on a node of its own.
func fails(t testing.TB, r *rand.Rand, script []step) bool {
	l := newLife(t, r)
	defer l.t.clean()
	return !l.carriesOut(script) || !l.ends()
}

// TestRandomScripts carries out random scripts. The one that fails is printed, shortened to the
// steps that it needs.
func TestRandomScripts(t *testing.T) {
	began, r := time.Now(), random(t)
	if *script != "" {
		content, err := os.ReadFile(*script)
		if err != nil {
			t.Fatal(err)
		}
		if fails(t, r, strings.Split(strings.TrimSpace(string(content)), "\n")) {
			t.Fatal("this script fails")
		}
		return
	}
	c := count{kinds: map[string]int{}}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(stop)
	enough := func() bool {
		return len(stop) > 0 || c.steps >= *steps && *stepsFor == 0 || *stepsFor > 0 && time.Since(began) > *stepsFor
	}
	for said := began; !enough(); {
		l := newLife(t, r)
		for len(l.done) < longest && !l.t.failed && !enough() {
			n := scriptSize
			if *stepsFor == 0 {
				n = min(n, *steps-c.steps)
			}
			script := randomScript(r, n)
			if l.carriesOut(script) {
				c.add(script)
			}
			if time.Since(said) > time.Minute {
				said = time.Now()
				t.Logf("%v: %v", time.Since(began).Round(time.Second), &c)
			}
		}
		ok := !l.t.failed && l.ends()
		l.t.clean()
		c.starts, c.nodes = c.starts+l.starts, c.nodes+1
		if ok {
			continue
		}
		t.Logf("after %v: %v", time.Since(began).Round(time.Second), &c)
		*patience = min(*patience, 10*time.Second) // it is there at once, or never
		needed := l.done
		if last := l.done[max(0, len(l.done)-scriptSize-1):]; fails(t, r, last) {
			needed = last
		} else if !fails(t, r, needed) {
			t.Fatalf("these steps failed once, and not again:\n%s", strings.Join(needed, "\n"))
		}
		t.Fatalf("this script fails; carry it out with -args -script FILE:\n%s", strings.Join(shorten(needed, func(s []step) bool { return fails(t, r, s) }), "\n"))
	}
	t.Logf("%v: %v", time.Since(began).Round(time.Second), &c)
}

const (
	scriptSize = 60
	longest    = 20 * (scriptSize + 1) // steps of a life
)

// count is what was carried out, and ended as it must.
type count struct {
	steps, scripts, nodes, starts int
	kinds                         map[string]int
}

func (c *count) add(script []step) {
	c.scripts++
	c.steps += len(script)
	for _, s := range script {
		kind, _, _ := strings.Cut(s, " ")
		c.kinds[kind]++
	}
}

func (c *count) String() string {
	var kinds []string
	for _, k := range slices.Sorted(maps.Keys(c.kinds)) {
		kinds = append(kinds, fmt.Sprint(k, " ", c.kinds[k]))
	}
	return fmt.Sprintf("%d steps in %d scripts on %d nodes, %d starts of the agent: %s", c.steps, c.scripts, c.nodes, c.starts, strings.Join(kinds, ", "))
}

// shorten leaves steps out as long as the script still fails.
func shorten(script []step, fails func([]step) bool) []step {
	for size := len(script) / 2; size > 0; size /= 2 {
		for at := 0; at+size <= len(script); {
			shorter := slices.Concat(script[:at], script[at+size:])
			if fails(shorter) {
				script = shorter
			} else {
				at += size
			}
		}
	}
	return script
}

// recorder is a test that may fail without the real one's failing.
type recorder struct {
	testing.TB
	failed   bool
	cleanups []func()
}

func (r *recorder) Helper() {}

// try calls what Fatal ends.
func (r *recorder) try(f func()) {
	defer func() {
		if e := recover(); e != nil && e != (ended{}) {
			panic(e)
		}
	}()
	if !r.failed {
		f()
	}
}

// TempDir is there until clean.
func (r *recorder) TempDir() string {
	dir, err := os.MkdirTemp("", "flock-crash-")
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }

func (r *recorder) clean() {
	for _, f := range slices.Backward(r.cleanups) {
		f()
	}
}

func (r *recorder) Errorf(format string, args ...any) {
	r.failed = true
	r.TB.Logf("failed: "+format, args...)
}

func (r *recorder) Error(args ...any) { r.failed = true; r.TB.Log(args...) }

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	panic(ended{})
}

func (r *recorder) Fatal(args ...any) { r.Error(args...); panic(ended{}) }

type ended struct{}
