package crash

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var (
	steps  = flag.Int("steps", 30, "of the random scripts of TestRandomScripts, in all")
	script = flag.String("script", "", "file with the script that TestRandomScripts carries out, in place of random ones")
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

// randomScript makes a script that ends settled.
func randomScript(r *rand.Rand, n int) (script []step) {
	pod := func() string { return fmt.Sprint("pod-", r.IntN(5)) }
	for range n {
		var s step
		switch k := r.IntN(100); {
		case k < 35:
			s = "add " + pod()
		case k < 55:
			s = "del " + pod()
		case k < 60:
			s = "end " + pod()
		case k < 64:
			s = "gc"
		case k < 76:
			s = fmt.Sprint("kill ", 1+r.IntN(16))
		case k < 84:
			s = fmt.Sprintf("fail %d %s", 1+r.IntN(40), errnos[r.IntN(len(errnos))])
		case k < 87:
			s = "restart"
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
func carryOut(n *node, script []step) {
	sandboxes := map[string]*pod{}
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
	for _, p := range sandboxes {
		n.must("DEL", func() error { return n.del(p) })
	}
	n.eventually("at the end", n.settled)
}

// TestRandomScripts carries out random scripts. The one that fails is printed, shortened to the
// steps that it needs.
func TestRandomScripts(t *testing.T) {
	run := func(t testing.TB, script []step) (failed bool) {
		r := &recorder{TB: t}
		done := make(chan struct{})
		go func() { // Fatalf ends it
			defer close(done)
			defer func() {
				if e := recover(); e != nil && e != (ended{}) {
					panic(e)
				}
			}()
			n := newNode(r)
			n.start()
			carryOut(n, script)
			n.nothingHeld()
		}()
		<-done
		r.clean()
		return r.failed
	}
	check := func(script []step) {
		t.Helper()
		if !run(t, script) {
			return
		}
		t.Fatalf("this script fails; carry it out with -args -script FILE:\n%s", strings.Join(shorten(script, func(s []step) bool { return run(t, s) }), "\n"))
	}
	if *script != "" {
		content, err := os.ReadFile(*script)
		if err != nil {
			t.Fatal(err)
		}
		check(strings.Split(strings.TrimSpace(string(content)), "\n"))
		return
	}
	r := random(t)
	for done := 0; done < *steps; {
		script := randomScript(r, min(60, *steps-done))
		done += len(script)
		check(script)
	}
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
